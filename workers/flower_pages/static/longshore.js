// Refreshes the parts of a page that have changed, and confirms each button's command. Without libraries.
"use strict";

(() => {
  const EVERY = 1000;
  const live = document.getElementById("live");
  const message = document.getElementById("message");
  const announced = document.getElementById("announced");
  const ask = document.getElementById("ask");
  const shown = new Map();
  let asked = null;

  const version = () => live.querySelector("[data-version]")?.dataset.version ?? "";

  // fetch() refuses an address with a login, which the page's own address may hold.
  const at = (path) => new URL(path, location.origin);

  // What a browser has done to a part since, such as an opened entry, is no change of the part.
  for (const part of live.querySelectorAll("[data-part]")) shown.set(part.dataset.part, part.outerHTML);

  function replace(part, next) {
    const open = [...part.querySelectorAll("details[open]")].map((each) => each.id);
    const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
    const places = [...part.querySelectorAll(".picture, .timeline")].map((each) => [each.scrollLeft, each.scrollTop]);
    part.replaceWith(next);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    next.dispatchEvent(new CustomEvent("longshore:part", { bubbles: true, detail: next.dataset.part }));
    next.querySelectorAll(".picture, .timeline").forEach((each, number) => {
      if (places[number]) [each.scrollLeft, each.scrollTop] = places[number];
    });
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  function put(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    const state = document.getElementById("state")?.textContent;
    for (const next of fresh.querySelectorAll("[data-part]")) {
      const key = next.dataset.part;
      const part = live.querySelector(`[data-part="${key}"]`);
      if (!part || shown.get(key) === next.outerHTML) continue;
      shown.set(key, next.outerHTML);
      replace(part, document.importNode(next, true));
    }
    // The buttons of the time line appear with its first bar.
    const zoom = document.getElementById("zoom");
    if (zoom) zoom.hidden = !document.getElementById("gantt");
    const title = live.querySelector("[data-title]")?.dataset.title;
    if (title) document.title = title;
    const now = document.getElementById("state")?.textContent;
    if (announced && now !== state) announced.textContent = `The run is now ${now}.`;
  }

  async function refresh() {
    if (document.visibilityState === "hidden") return;
    try {
      const answer = await fetch(at(`${live.dataset.live}&part=1&version=${encodeURIComponent(version())}`));
      if (answer.status === 200) put(await answer.text());
      else if (answer.status !== 204) throw new Error(`${answer.status} ${await answer.text()}`);
      if (message.dataset.lost) { message.textContent = ""; delete message.dataset.lost; }
    } catch (error) {
      message.textContent = `This page may be out of date: ${error.message}`;
      message.dataset.lost = "1";
    }
  }

  async function act(button, why) {
    const words = new URLSearchParams({ step: button.step, reason: why });
    const xsrf = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
    const headers = { "X-Requested-With": "longshore" };
    if (xsrf) headers["X-XSRFToken"] = decodeURIComponent(xsrf[1]);
    message.textContent = `${button.what} …`;
    const send = () => fetch(at(`${location.pathname}/${button.kind}`), { method: "POST", body: words, headers });
    try {
      // A kept-alive connection may be closed; a repeated command is harmless.
      const answer = await send().catch(send);
      message.textContent = `${button.kind} ${button.step}: ${await answer.text()}`;
    } catch (error) {
      message.textContent = `${button.kind}: ${error.message}`;
    }
    refresh();
  }

  live.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (!button) return;
    asked = { kind: button.dataset.do, step: button.dataset.step ?? "", what: button.dataset.what };
    document.getElementById("ask-what").textContent = `${asked.what}?`;
    document.getElementById("ask-why").value = "";
    ask.returnValue = "";
    ask.showModal();
    document.getElementById("ask-why").focus();
  });
  ask?.addEventListener("close", () => {
    if (ask.returnValue === "yes" && asked) act(asked, document.getElementById("ask-why").value);
    asked = null;
  });

  // A state in the list of runs filters at once.
  document.querySelector(".search .chips")?.addEventListener("change", (event) => event.target.form.requestSubmit());

  // A page of thousands of steps is refreshed less often.
  async function keepFresh() {
    const began = performance.now();
    await refresh();
    setTimeout(keepFresh, Math.max(EVERY, 4 * (performance.now() - began)));
  }
  setTimeout(keepFresh, EVERY);
})();
