// Filter, order and groups of the table of steps. The state of each lasts while the table is refreshed.
"use strict";

(() => {
  const live = document.getElementById("live");
  const field = document.getElementById("filter");
  const first = document.getElementById("failed-first");
  const matches = document.getElementById("matches");
  if (!live || !field) return;

  const open = new Set();
  let state = "";

  function order(table) {
    const by = first.checked ? (one) => Number(one.dataset.rank) : () => 0;
    const compare = (one, other) => by(one) - by(other) || Number(one.dataset.index) - Number(other.dataset.index);
    table.append(...[...table.tBodies].sort(compare));
    for (const body of table.querySelectorAll("tbody.group")) body.append(...[...body.querySelectorAll(".step")].sort(compare));
  }

  function apply() {
    const table = live.querySelector("table.steps");
    if (!table) return;
    order(table);
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const filtered = words.length > 0 || state !== "";
    let count = 0;
    for (const body of table.tBodies) {
      const key = body.dataset.group;
      const unfolded = !key || open.has(key);
      let here = 0;
      for (const row of body.querySelectorAll(".step")) {
        const fits = words.every((word) => row.dataset.words.includes(word))
          && (!state || row.dataset.state === state);
        here += fits;
        row.hidden = filtered ? !fits : !unfolded && !row.classList.contains("urgent");
      }
      count += here;
      const head = body.querySelector(".head");
      if (head) {
        head.hidden = filtered && !here;
        head.querySelector("[data-open]").setAttribute("aria-expanded", unfolded);
      }
    }
    matches.textContent = filtered ? `${count} of ${table.querySelectorAll(".step").length} steps match` : "";
    for (const chip of live.querySelectorAll("[data-filter]")) {
      chip.setAttribute("aria-pressed", chip.dataset.filter === state);
    }
  }

  // A link to a step shows its row, wherever it is folded or filtered.
  function reveal() {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const body = row?.closest("tbody");
    if (!body) return;
    if (row.hidden) {
      if (body.dataset.group) open.add(body.dataset.group);
      field.value = "";
      state = "";
      apply();
    }
    row.scrollIntoView({ block: "center" });
  }

  field.addEventListener("input", apply);
  first.addEventListener("change", apply);
  live.addEventListener("click", (event) => {
    const key = event.target.closest("[data-open]")?.dataset.open;
    const chip = event.target.closest("[data-filter]")?.dataset.filter;
    if (key && !open.delete(key)) open.add(key);
    if (chip !== undefined) state = state === chip ? "" : chip;
    if (key || chip !== undefined) apply();
  });
  window.addEventListener("hashchange", reveal);
  live.addEventListener("longshore:part", (event) => { if (["steps", "counts"].includes(event.detail)) apply(); });
  apply();
  if (location.hash) reveal();
})();
