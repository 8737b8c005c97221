// The page as a whole: its address holds the chosen call, the feed brings what it shows.
import { clock, copyButton, h, keep, send, waitsFor } from "./dom.js";
import { setUp } from "./form.js";
import { showCall } from "./call.js";
import { setUpLine, showLines } from "./line.js";

const RETRY_MS = 1500;
const SHOWN = 200;
const PHONE = matchMedia("(max-width: 760px)");
const ENDED = new Set(["completed", "no_answer", "busy", "rejected", "failed", "canceled", "expired"]);

const calls = new Map();
let setup = null;
let source = null;
let known = false;

const element = (id) => document.getElementById(id);
const chosen = () => location.hash.match(/^#\/calls\/([0-9a-f]{24})$/)?.[1] ?? null;

function connection(state, text) {
  element("connection").dataset.state = state;
  element("connection").textContent = text;
}

function complain(text) {
  element("trouble").textContent = text ?? "";
  element("trouble").hidden = !text;
}

// ── the list ──

function showCalls() {
  const shown = [...calls.values()].sort((a, b) => b.placedAt - a.placedAt).slice(0, SHOWN);
  const state = element("calls-state");
  state.hidden = shown.length > 0;
  if (known) state.textContent = "No calls yet. Place one above, or POST to the API: it appears here as it happens.";
  element("count").textContent = calls.size ? String(calls.size) : "";
  keep(element("calls"), shown.map((call) => ({ ...call, chosen: call.callId === chosen() })), (call) => call.callId, callItem);
}

function statusBadge(status) {
  return h("span", { class: "badge", data: { status } }, status.replaceAll("_", " "));
}

function callItem(call) {
  const ended = call.reason && call.reason !== call.status ? call.reason.replaceAll("_", " ") : "";
  const reason = call.waitingFor ? waitsFor(call) : ended;
  const killed = call.killed ? h("span", { class: "killed" }, "killed") : null;
  return h("li", {},
    h("a", { href: `#/calls/${call.callId}`, "aria-current": call.chosen ? "true" : null },
      h("span", { class: "line" }, h("span", { class: "mono to" }, call.to), statusBadge(call.status)),
      h("span", { class: "line quiet" }, h("span", {}, clock(call.placedAt)),
        h("span", { class: "reason" }, killed, killed && reason ? " · " : null, reason))));
}

function note(call) {
  const before = calls.get(call.callId);
  if (before && !ENDED.has(before.status) && ENDED.has(call.status)) {
    element("said").textContent = `The call to ${call.to} ended: ${call.status.replaceAll("_", " ")}`;
  }
  calls.set(call.callId, call);
}

// ── the feed ──

function listen() {
  source?.close();
  const call = chosen();
  showCall(element("call"), setup, call, undefined, calls.size);
  source = new EventSource(call ? `feed?call=${call}` : "feed");
  source.addEventListener("open", () => connection("live", "live"));
  source.addEventListener("error", () => {
    connection("lost", "no connection");
    complain("The stack does not answer. It may have been stopped: `make run` starts one, at an address of its own.");
    // A browser does not reconnect after some errors.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_MS);
  });
  source.addEventListener("calls", ({ data }) => {
    const { all, calls: changed } = JSON.parse(data);
    if (all) calls.clear();
    changed.forEach(note);
    complain(null);
    if (!known) chooseNewest();
    known = true;
    showCalls();
    if (!chosen()) showCall(element("call"), setup, null, undefined, calls.size);
  });
  source.addEventListener("lines", ({ data }) => showLines(JSON.parse(data), chosen()));
  source.addEventListener("chosen", ({ data }) => showCall(element("call"), setup, call, JSON.parse(data), calls.size));
  source.addEventListener("trouble", ({ data }) => {
    const reason = JSON.parse(data);
    complain(reason && `A part of the stack does not answer: ${reason}`);
  });
}

/** Chooses the newest call of a page that was opened without one. A phone shows the list, which the call would hide. */
function chooseNewest() {
  if (location.hash || !calls.size || PHONE.matches) return;
  const newest = [...calls.values()].reduce((a, b) => (b.placedAt > a.placedAt ? b : a));
  history.replaceState(null, "", `#/calls/${newest.callId}`);
  listen();
}

function showAccess() {
  const { apiUrl, workspaceId, apiKey, webhookSecret } = setup;
  element("docs").href = setup.docsUrl;
  const values = { API: apiUrl, Workspace: workspaceId, "API key": apiKey, "Webhook secret": webhookSecret };
  element("access").querySelector("dl").replaceChildren(...Object.entries(values).map(([label, value]) =>
    h("div", {}, h("dt", {}, label), h("dd", {}, h("code", {}, value), copyButton(label, value)))));
  element("access").open = !PHONE.matches;
}

function pace(timeScale) {
  if (timeScale === 1) return "";
  const times = timeScale < 1 ? 1 / timeScale : timeScale;
  return ` · waits ${Number(times.toPrecision(3))}x ${timeScale < 1 ? "shorter" : "longer"}`;
}

function go({ oldURL } = {}) {
  showCalls();
  showLines(null, chosen());
  listen();
  // A phone shows either the list or the call: the focus follows what is shown.
  if (!oldURL || !PHONE.matches) return;
  const before = oldURL.split("#")[1];
  if (chosen()) {
    element("call").focus({ preventScroll: true });
    scrollTo(0, 0);
  } else if (before) {
    document.querySelector(`#calls a[href="#${CSS.escape(before)}"]`)?.focus();
  }
}

async function start() {
  try {
    const answer = await send("GET", "setup");
    if (answer.status !== 200) throw new Error(answer.text);
    setup = answer.body;
  } catch {
    connection("lost", "no connection");
    complain("The stack does not answer. Trying again …");
    setTimeout(start, RETRY_MS);
    return;
  }
  complain(null);
  showAccess();
  element("pace").textContent = pace(setup.timeScale);
  element("real").hidden = setup.standIn;
  setUpLine(setup);
  setUp(setup, (callId) => (location.hash = `#/calls/${callId}`));
  addEventListener("hashchange", go);
  go();
}

start();
