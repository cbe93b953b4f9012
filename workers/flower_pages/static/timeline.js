// Ticks, zoom and folded rows of the time line. Positions are percentages, so that zooming only widens the tracks.
"use strict";

(() => {
  const live = document.getElementById("live");
  const tools = document.getElementById("zoom");
  if (!live || !tools) return;

  const MOST = 400;
  const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500].concat(
    [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400].map((s) => s * 1000),
  );
  let zoom = 1;
  const open = new Set();

  const gantt = () => document.getElementById("gantt");
  const trackWidth = () => document.getElementById("ticks").clientWidth;
  const label = () => gantt().querySelector(".name").offsetWidth;
  const windowWidth = () => gantt().clientWidth - label();

  function clock(ms, step) {
    if (ms === 0) return "0";
    if (step < 1000) return `${(ms / 1000).toFixed(step < 10 ? 3 : step < 100 ? 2 : 1)} s`;
    const [days, hours] = [Math.floor(ms / 86400000), Math.floor(ms / 3600000) % 24];
    const [minutes, seconds] = [Math.floor(ms / 60000) % 60, Math.floor(ms / 1000) % 60];
    const parts = [[days, "d"], [hours, "h"], [minutes, "min"], [seconds, "s"]].filter(([number]) => number);
    return parts.slice(0, 3).map(([number, unit]) => `${number} ${unit}`).join(" ");
  }

  function ticks() {
    const span = Number(gantt().dataset.span);
    const room = windowWidth() > 400 ? 84 : 58; // pixels between two ticks
    const wanted = span * room / Math.max(1, trackWidth());
    const step = STEPS.find((each) => each >= wanted) ?? Math.ceil(wanted / 86400000) * 86400000;
    const axis = document.getElementById("ticks");
    axis.replaceChildren();
    for (let at = 0; at <= span; at += step) {
      if (at && (span - at) * trackWidth() < span * room / 2) break; // no room for its label
      const tick = document.createElement("span");
      tick.style.left = `${at * 100 / span}%`;
      tick.textContent = clock(at, step);
      axis.append(tick);
    }
  }

  function draw() {
    if (!gantt()) return;
    gantt().style.setProperty("--zoom", zoom);
    document.getElementById("zoomed").value = `${Math.round(zoom * 100)} %`;
    tools.querySelector("[data-zoom=out]").disabled = zoom <= 1;
    for (const button of gantt().querySelectorAll("[data-fold]")) {
      const shown = open.has(button.dataset.fold);
      button.setAttribute("aria-expanded", shown);
      for (const row of gantt().querySelectorAll(`[data-in="${CSS.escape(button.dataset.fold)}"]`)) row.hidden = !shown;
    }
    ticks();
  }

  // Enlarge around a point of the time line, a fraction of its width, that stays where it is in the window.
  function enlarge(times, fraction, inWindow) {
    zoom = Math.min(MOST, Math.max(1, zoom * times));
    draw();
    gantt().scrollLeft = fraction * trackWidth() - inWindow;
  }

  function enlargeMiddle(times) {
    const half = windowWidth() / 2;
    enlarge(times, (gantt().scrollLeft + half) / trackWidth(), half);
  }

  function fit() {
    zoom = 1;
    draw();
  }

  tools.addEventListener("click", (event) => {
    const kind = event.target.closest("[data-zoom]")?.dataset.zoom;
    if (kind === "in") enlargeMiddle(2);
    if (kind === "out") enlargeMiddle(0.5);
    if (kind === "fit") fit();
  });

  live.addEventListener("click", (event) => {
    const key = event.target.closest("[data-fold]")?.dataset.fold;
    if (!key) return;
    if (!open.delete(key)) open.add(key);
    draw();
  });

  live.addEventListener("keydown", (event) => {
    if (!event.target.closest("#gantt") || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = { "+": () => enlargeMiddle(2), "-": () => enlargeMiddle(0.5), 0: fit }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  live.addEventListener("wheel", (event) => {
    const frame = event.target.closest("#gantt");
    if (!frame || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    const inWindow = event.clientX - frame.getBoundingClientRect().left - label();
    enlarge(event.deltaY < 0 ? 1.25 : 0.8, (frame.scrollLeft + inWindow) / trackWidth(), inWindow);
  }, { passive: false });

  // A part of the time line that is marked with the mouse fills the window.
  let from = null;
  let marked = null;
  const place = (event) => {
    const area = document.getElementById("ticks").getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - area.left) / area.width));
  };

  live.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button || !event.target.closest("#gantt .track")) return;
    from = place(event);
    event.preventDefault();
    gantt().focus({ preventScroll: true });
  });
  window.addEventListener("pointermove", (event) => {
    if (from === null || !gantt()) return;
    if (!marked?.isConnected) {
      marked = document.createElement("div");
      marked.className = "marked";
      gantt().querySelector(".body").append(marked);
    }
    const to = place(event);
    marked.style.setProperty("--from", Math.min(from, to));
    marked.style.setProperty("--part", Math.abs(to - from));
  });
  window.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const [begin, end] = [from, place(event)].sort((one, other) => one - other);
    from = null;
    marked?.remove();
    if (!gantt() || (end - begin) * trackWidth() < 8) return;
    zoom = Math.min(MOST, Math.max(1, 1 / (end - begin)));
    draw();
    gantt().scrollLeft = begin * trackWidth();
  });
  live.addEventListener("dblclick", (event) => { if (event.target.closest("#gantt .track")) fit(); });

  live.addEventListener("longshore:part", (event) => { if (event.detail === "timeline") draw(); });
  window.addEventListener("resize", draw);
  draw();
})();
