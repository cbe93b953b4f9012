// Refreshes a page every second, and confirms each button's command. Without libraries or external resources.
"use strict";

(() => {
  const EVERY = 1000;
  const live = document.getElementById("live");
  const message = document.getElementById("message");
  const ask = document.getElementById("ask");
  let asked = null;

  const version = () => live.querySelector("[data-version]")?.dataset.version ?? "";

  // fetch() refuses an address with a login, which the page's own address may hold.
  const at = (path) => new URL(path, location.origin);

  function put(html) {
    if (html.trim() === live.dataset.last) return;
    const open = [...live.querySelectorAll("details[open]")].map((each) => each.id);
    const focused = live.contains(document.activeElement) ? document.activeElement.id : "";
    const places = [...live.querySelectorAll(".picture")].map((each) => [each.scrollLeft, each.scrollTop]);
    live.innerHTML = html;
    live.dataset.last = html.trim();
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focused) document.getElementById(focused)?.focus();
    live.querySelectorAll(".picture").forEach((each, number) => {
      if (places[number]) [each.scrollLeft, each.scrollTop] = places[number];
    });
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

  setInterval(refresh, EVERY);
})();
