// The page: views, the key, and whether the gateway is ready.

import * as chat from "/page/chat.js";
import { $ } from "/page/elements.js";
import { key, readiness } from "/page/gateway.js";
import * as routers from "/page/routers.js";
import * as versions from "/page/versions.js";

const SECONDS = 3;
const VIEW_SECONDS = 15; // a view asks for each name, and every request counts for a rate
const VIEWS = { chat: chat.offer, versions: versions.show, routers: routers.show };
let view = "chat";
let due = Infinity; // when the view is to be asked for again; never while it is

async function refresh() {
  due = Infinity;
  let pause = VIEW_SECONDS;
  await ready();
  try {
    await VIEWS[view]();
    trouble("");
  } catch (error) {
    pause = Math.max(pause, error.seconds || 0);
    trouble(error.status === 401 ? "This gateway wants a key: enter it above." : error.message);
  }
  due = Date.now() + 1000 * pause;
}

async function ready() {
  const state = await readiness().catch(() => null);
  const [text, mood] = state === null ? ["unreachable", "bad"]
    : !state.ready ? ["not ready", "bad"]
    : state.registry ? ["ready", "good"] : ["ready, registry away", "warn"];
  $("ready").textContent = text;
  $("ready").className = `pill ${mood}`;
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

function choose(chosen) {
  view = chosen;
  for (const name of Object.keys(VIEWS)) {
    $(name).hidden = name !== view;
    $(`tab-${name}`).setAttribute("aria-selected", String(name === view));
  }
  return refresh();
}

for (const name of Object.keys(VIEWS)) $(`tab-${name}`).addEventListener("click", () => choose(name));
$("key").value = key.get();
$("key-form").addEventListener("submit", (event) => event.preventDefault());
$("key").addEventListener("change", () => {
  key.set($("key").value.trim());
  refresh();
});
chat.begin();
refresh();
setInterval(() => (document.hidden ? null : view === "chat" || Date.now() < due ? ready() : refresh()), 1000 * SECONDS);
