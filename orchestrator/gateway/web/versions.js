// What stands behind each name, and how it came there.

import { $, el, empty, fact, percent, time } from "/page/elements.js";
import { get, getAll } from "/page/gateway.js";

const LATEST = 30;

/** Show every name's roll-out and log. */
export async function show() {
  const { rollouts } = await get("/moetune/v1/rollouts");
  const logs = await getAll(rollouts.map(({ name }) => `/moetune/v1/rollouts/${encodeURIComponent(name)}/history`));
  const cards = rollouts.map((state, index) => card(state, logs[index].events));
  $("versions").replaceChildren(
    cards.length ? el("div", { className: "cards" }, cards) : empty("Nothing was promoted to a name yet."),
  );
}

function card(state, events) {
  const stage = state.canary ? "canary" : state.shadow ? "shadow" : "steady";
  return el(
    "article",
    { className: "card" },
    el("div", { className: "head" }, el("h2", {}, state.name),
      el("span", { className: `pill ${stage === "steady" ? "good" : "warn"}` }, stage)),
    traffic(state),
    el("dl", {},
      fact("champion", mono(`${state.champion} since ${time(state.since)}`)),
      fact("before", state.previous && mono(state.previous)),
      fact("canary", state.canary && plan(state.canary)),
      fact("requests", state.requests && `${state.requests.canary} to the canary, ${state.requests.champion} to the champion`),
      fact("warning", state.requests?.warning),
      fact("shadow", state.shadow && mono(state.shadow)),
      fact("shadow's answers", state.shadow_seen && seen(state.shadow_seen)),
      Object.entries(state.refused || {}).flatMap(([version, why]) => fact("refused", `${version}: ${why}`))),
    log(events),
  );
}

const mono = (text) => el("span", { className: "mono" }, text);

function traffic(state) {
  const share = state.canary?.share ?? 0;
  const parts = [["champion", state.champion, 1 - share], ["canary", state.canary?.version, share]];
  return el("div", { className: "traffic" }, parts.filter(([, , part]) => part > 0).map(([role, version, part]) => {
    const bar = el("div", { className: role, title: `${role} ${version}: ${percent(part)}` }, `${role} ${percent(part)}`);
    bar.style.width = `${100 * part}%`;
    return bar;
  }));
}

function plan(canary) {
  const next = canary.next_step_at ? `, next ${time(canary.next_step_at)}` : "";
  return `${canary.version}: ${percent(canary.share)} of the users, step ${canary.step} of ${canary.steps}${next}`;
}

const seen = (figures) =>
  `${figures.requests} requests, ${percent(figures.equal)} equal to the champion's, ${percent(figures.agreement)} of the tokens`;

function log(events) {
  const rows = events.slice(-LATEST).reverse().map((event) =>
    el("tr", {}, [time(event.at), event.action, event.version, event.actor, event.reason].map((text, column) =>
      el("td", { className: column === 2 ? "mono" : "" }, text))));
  const head = el("tr", {}, ["when", "what", "version", "who", "why"].map((text) => el("th", {}, text)));
  return el("div", { className: "wide" }, el("table", {}, el("thead", {}, head), el("tbody", {}, rows)));
}
