-- Uploads of one file each for wrk, in an order of its own for each thread.
-- Arguments: a file with the path of one upload on each line, its boundary. The figures go where GROUNDGLASS_FIGURES says.
local number = 0
function setup(thread)
  thread:set("first", number)
  number = number + 1
end

function init(arguments)
  bodies, sent = {}, first * 7
  for path in io.lines(arguments[1]) do
    local stream = assert(io.open(path, "rb"))
    bodies[#bodies + 1] = stream:read("*a")
    stream:close()
  end
  headers = { ["Content-Type"] = "multipart/form-data; boundary=" .. arguments[2] }
end

function request()
  sent = sent + 1
  return wrk.format("POST", "/v2/predictions", headers, bodies[sent % #bodies + 1])
end

function done(summary, latency, requests)
  local stream = assert(io.open(os.getenv("GROUNDGLASS_FIGURES"), "w"))
  local errors = summary.errors
  stream:write(string.format(
    '{"requests": %d, "seconds": %f, "socket_errors": %d, "status_errors": %d, "timeouts": %d, ' ..
    '"p50_ms": %f, "p99_ms": %f, "max_ms": %f}\n',
    summary.requests, summary.duration / 1e6, errors.connect + errors.read + errors.write, errors.status,
    errors.timeout, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
  stream:close()
end
