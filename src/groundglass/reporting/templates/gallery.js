"use strict";
(() => {
  const gallery = document.getElementById("gallery");
  const toolbar = document.getElementById("toolbar");
  const shown = document.getElementById("shown");
  const cards = Array.from(gallery.children);
  const filters = Array.from(toolbar.querySelectorAll("select"));
  const buttons = Array.from(toolbar.querySelectorAll("button"));
  const names = new Intl.Collator(undefined, { numeric: true });
  const rank = {
    status: { failed: 0, refused: 1, ok: 2 },
    label: { COVID: 0, uncertain: 1, NonCOVID: 2 },
  };
  // The first press of a button sorts the way that is wanted most often; the second turns it round.
  const falling = { probability: true };
  let sort = "order";
  let down = false;

  const value = (card, key) => {
    const text = card.dataset[key];
    if (key === "file") return text;
    if (text === undefined || text === "") return null;
    return key in rank ? rank[key][text] : Number(text);
  };

  const compare = (a, b) => {
    const first = value(a, sort), second = value(b, sort);
    let result = 0;
    if (first === null || second === null) {
      // What has no value comes last, whichever way round.
      result = (first === null) - (second === null);
    } else {
      result = sort === "file" ? names.compare(first, second) : first - second;
      if (sort === "position") result = value(a, "series") - value(b, "series") || result;
      if (down) result = -result;
    }
    return result || Number(a.dataset.order) - Number(b.dataset.order);
  };

  const update = () => {
    let count = 0;
    for (const card of cards) {
      const wanted = filters.every((each) => each.value === "" || each.value === (card.dataset[each.name] || ""));
      card.hidden = !wanted;
      count += wanted;
    }
    gallery.append(...cards.slice().sort(compare));
    for (const button of buttons) {
      const active = button.dataset.sort === sort;
      button.setAttribute("aria-pressed", String(active));
      button.querySelector("span").textContent = active ? (down ? " ↓" : " ↑") : "";
    }
    const name = buttons.find((button) => button.dataset.sort === sort).dataset.name;
    shown.textContent = `${count} of ${cards.length} slices shown, by ${name}, ${down ? "descending" : "ascending"}.`;
  };

  for (const button of buttons) {
    button.addEventListener("click", () => {
      down = sort === button.dataset.sort ? !down : Boolean(falling[button.dataset.sort]);
      sort = button.dataset.sort;
      update();
    });
  }
  for (const filter of filters) filter.addEventListener("change", update);
  // A browser that comes back to the page may have kept the choices.
  update();
  toolbar.hidden = false;
})();
