// What pointers and the wheel mean on the stage: one pointer does what the tool says, two pinch, the wheel zooms.

/**
 * @param {HTMLCanvasElement} canvas
 * @param {object} to the listeners, all in pixels of the page:
 *   `tool()` gives "window" or "pan"; `window(right, down)`; `pan(right, down)`; `zoom(factor, x, y)` about a place;
 *   `hover(x, y)`, or `hover()` when the pointer leaves.
 */
export function listenToPointers(canvas, to) {
  const pointers = new Map();

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    const panning = event.button !== 0 || event.shiftKey || to.tool() === "pan";
    pointers.set(event.pointerId, { ...place(event), panning });
    canvas.classList.add("dragged");
  });

  canvas.addEventListener("pointermove", (event) => {
    const now = place(event);
    to.hover(now.x, now.y);
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, other]) => other);
    if (others.length) pinch(others[0], before, now, to);
    else if (before.panning) to.pan(now.x - before.x, now.y - before.y);
    else to.window(now.x - before.x, now.y - before.y);
    pointers.set(event.pointerId, { ...before, ...now });
  });

  const end = (event) => {
    pointers.delete(event.pointerId);
    canvas.classList.toggle("dragged", pointers.size > 0);
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => to.hover());
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { x, y } = place(event);
    // Wheels give about 100 for a notch in pixels, and 3 in lines.
    const notches = event.deltaY / (event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? 100 : 3);
    to.zoom(1.2 ** -Math.max(-3, Math.min(3, notches)), x, y);
  }, { passive: false });
}

/** Two fingers: their distance zooms, their middle pans. */
function pinch(other, before, now, to) {
  const apart = (point) => Math.max(Math.hypot(point.x - other.x, point.y - other.y), 1);
  to.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
  to.zoom(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
}
