-- Orthanc: classify each chest CT series once no image of it has come for StableAge seconds.
-- The results are stored in Orthanc itself, beside the images. Research use only, no diagnosis.
local chest = {"CHEST", "THORAX", "LUNG"}

local function mayBeChest(part)
  part = string.upper(part or "")
  for _, word in ipairs(chest) do
    if string.find(part, word, 1, true) then return true end
  end
  return part == ""  -- many scanners leave it out; other parts of the body are refused slice by slice
end

function OnStableSeries(seriesId, tags, metadata)
  if tags["Modality"] ~= "CT" or not mayBeChest(tags["BodyPartExamined"]) then return end
  local study = ParseJson(RestApiGet("/series/" .. seriesId .. "/study"))["MainDicomTags"]["StudyInstanceUID"]
  if not string.match(study or "", "^[0-9.]+$") then return end  -- it becomes part of a command
  local command = os.getenv("GROUNDGLASS_PACS") or "groundglass pacs"
  local url = string.format("http://127.0.0.1:%d/dicom-web", GetOrthancConfiguration()["HttpPort"])
  -- In the background, as Orthanc waits for this function.
  os.execute(command .. " --dicomweb " .. url .. " --study " .. study .. " &")
end
