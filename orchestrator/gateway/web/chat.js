// One question to two models: the chosen version, and the bare base beside it.

import { $, el } from "/page/elements.js";
import { experts } from "/page/experts.js";
import { chat, get } from "/page/gateway.js";

let base = "";
const sides = { left: { turns: [] }, right: { turns: [] } };
let running = null;

/** Fill the list of versions; keeps what was chosen. */
export async function offer() {
  const models = (await get("/v1/models")).data.map((model) => model.id);
  const { rollouts } = await get("/moetune/v1/rollouts").catch(() => ({ rollouts: [] }));
  base = models[0];
  const kept = $("model").value;
  const names = models.slice(1).map((name) => [name, name]);
  const exact = rollouts.flatMap((state) =>
    [["champion", state.champion], ["canary", state.canary?.version], ["before", state.previous]]
      .filter(([, version]) => version && version !== "base")
      .map(([role, version]) => [`${state.name}@${version}`, `${state.name}@${version} · ${role}`]),
  );
  const options = [...names, ...exact, [base, `${base} · base`]];
  $("model").replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  if (options.some(([value]) => value === kept)) $("model").value = kept;
  title();
  examples(); // beside: what the page says of itself does not wait for them
}

/** Questions of the chosen version's own rows, where the gateway tells any. */
async function examples() {
  const model = $("model").value;
  const path = `/moetune/v1/examples/${encodeURIComponent(model)}`;
  const { questions } = model === base ? { questions: [] } : await get(path).catch(() => ({ questions: [] }));
  if (model !== $("model").value) return; // another one was chosen meanwhile
  const button = (question) =>
    el("button", { type: "button", title: question, onclick: () => Object.assign($("question"), { value: question }).focus() }, question);
  $("examples").replaceChildren(...questions.map(button));
  $("examples").hidden = !questions.length;
}

function title() {
  $("left-title").textContent = $("model").value;
  $("right-title").textContent = `${base} · base`;
}

async function ask(event) {
  event.preventDefault();
  if (running) return running.abort();
  const question = $("question").value.trim();
  if (!question || !base) return;
  $("question").value = "";
  running = new AbortController();
  $("send").textContent = "Stop";
  const models = { left: $("model").value, right: base };
  await Promise.all(Object.keys(sides).map((side) => answer(side, models[side], question, running.signal)));
  running = null;
  $("send").textContent = "Send";
}

async function answer(side, model, question, signal) {
  const alone = $("alone").checked;
  if (alone) sides[side].turns = [];
  const { turns } = sides[side];
  turns.push({ role: "user", content: question });
  const talk = $(side);
  const shown = el("div", { className: "turn waiting" });
  const facts = el("div", { className: "facts" });
  talk.append(el("div", { className: "turn user" }, question), shown, facts);
  const asked = performance.now();
  const got = { text: "", first: null, usage: null, model, routing: null };
  try {
    for await (const event of chat(body(model, turns), signal)) {
      take(got, event, asked);
      shown.textContent = got.text;
      talk.scrollTop = talk.scrollHeight;
    }
    turns.push({ role: "assistant", content: got.text });
  } catch (error) {
    turns.pop();
    if (error.name !== "AbortError") shown.classList.add("failed");
    shown.textContent = error.name === "AbortError" ? `${got.text} (stopped)` : `${got.text} ${error.message}`.trim();
  }
  shown.classList.remove("waiting");
  facts.textContent = [told(got, (performance.now() - asked) / 1000), ...(alone ? ["asked alone"] : [])].join(" · ");
  const shares = experts(got.routing, got.usage?.prompt_tokens ?? 0);
  if (shares) talk.append(shares);
  talk.scrollTop = talk.scrollHeight;
}

function body(model, turns) {
  return {
    model,
    messages: turns.filter((turn) => turn.content),
    temperature: Number($("temperature").value),
    max_tokens: Math.max(1, Math.round(Number($("tokens").value))),
    ...(model !== base && { moetune: { routing: "tokens" } }),
  };
}

function take(got, event, asked) {
  const piece = event.choices[0]?.delta?.content || "";
  if (piece && got.first === null) got.first = (performance.now() - asked) / 1000;
  got.text += piece;
  got.model = event.model || got.model;
  got.usage = event.usage || got.usage;
  got.routing = event.moetune?.routing || got.routing;
}

function told(got, seconds) {
  const parts = [got.model];
  if (got.first !== null) parts.push(`first token ${got.first.toFixed(2)} s`);
  if (got.usage) {
    const count = got.usage.completion_tokens;
    parts.push(`${count} tokens`, `${(count / seconds).toFixed(1)} per second`);
  }
  return parts.join(" · ");
}

function clear() {
  running?.abort();
  for (const side of Object.keys(sides)) {
    sides[side].turns = [];
    $(side).replaceChildren();
  }
}

/** Listen to the form; once. */
export function begin() {
  $("ask").addEventListener("submit", ask);
  $("clear").addEventListener("click", clear);
  $("model").addEventListener("change", () => {
    clear();
    title();
    examples();
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask").requestSubmit();
  });
}
