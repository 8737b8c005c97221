// The chosen call: its promises, its timeline, its gates, and its data.
import { clock, count, duration, h, keep, moment, momentValue, send, waitsFor } from "./dom.js";
import { gateList, waiting, when } from "./gates.js";
import { jsonBox } from "./json.js";

const FAMILIES = {
  client: "client", livekit: "livekit", FanOut: "webhook", Deliver: "webhook", receiver: "webhook",
};
const TABS = { gates: "Gates", record: "Record", webhooks: "Webhooks", logs: "Logs", api: "API answer" };
const OPEN = new Set(["queued", "dialing", "in_progress"]);
// A pause of this length is shown as a gap in the timeline.
const GAP_MS = 2000;
const EVERY_STEP = "ringonce-every-step";
const TAB = "ringonce-tab";

let policies = [];
let parts = null;
let now = null;
let ticking = null;

/** Shows a call in `section`. detail: undefined while it is being loaded, null when there is no such call. */
export function showCall(section, setup, callId, detail, known) {
  if (!callId) {
    parts = now = null;
    section.classList.remove("open");
    section.replaceChildren(h("div", { class: "nothing" },
      h("h2", { id: "call-title" }, known ? "Choose a call" : "Nothing has happened yet"),
      h("p", { class: "quiet" }, known
        ? "Its timeline through every part of the stack appears here, in milliseconds."
        : "Place a call: its timeline through every part of the stack appears here, in milliseconds.")));
    return;
  }
  if (!parts || parts.callId !== callId) build(section, setup, callId);
  if (detail === undefined) return;
  section.setAttribute("aria-busy", "false");
  parts.state.hidden = Boolean(detail);
  parts.body.hidden = !detail;
  if (!detail) {
    parts.state.textContent = "This stack has no such call: it belongs to another stack, or is too old.";
    return;
  }
  now = detail;
  showHead(setup);
  showTimeline();
  showTab();
}

function build(section, setup, callId) {
  section.classList.add("open");
  section.setAttribute("aria-busy", "true");
  parts = { callId, setup, section };
  now = null;
  parts.state = h("p", { class: "empty" }, "Reading the call …");
  parts.title = h("h2", { id: "call-title", class: "mono" }, "Call");
  parts.badge = h("span", { class: "badge" });
  parts.reason = h("span", { class: "quiet" });
  parts.actions = h("div", { class: "actions" });
  parts.said = h("p", { class: "error", role: "alert", hidden: true });
  parts.waits = h("p", { class: "notice waits", hidden: true });
  parts.suppressed = h("ul", { class: "suppressed", "aria-label": "Suppressions of this number", hidden: true });
  parts.move = moveForm();
  parts.suppress = suppressForm();
  parts.fault = h("p", { class: "notice", hidden: true });
  parts.promises = h("ul", { class: "promises", "aria-label": "The three promises" });
  parts.rows = h("ol", { class: "rows" });
  parts.origin = h("p", { class: "help" });
  parts.next = h("p", { class: "next", hidden: true });
  parts.every = h("input", { type: "checkbox", id: "every", onchange: () => {
    localStorage.setItem(EVERY_STEP, parts.every.checked ? "1" : "");
    showTimeline();
  } });
  parts.every.checked = Boolean(localStorage.getItem(EVERY_STEP));
  parts.panel = h("div", { role: "tabpanel", id: "panel", class: "panel" });
  parts.tab = localStorage.getItem(TAB) in TABS ? localStorage.getItem(TAB) : "record";
  parts.tabs = h("div", { role: "tablist", class: "tabs", "aria-label": "The call’s data" },
    Object.entries(TABS).map(([name, label]) => h("button", {
      type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "panel", data: { name },
      onclick: () => chooseTab(name), onkeydown: moveTab,
    }, label)));
  parts.body = h("div", { class: "body", hidden: true },
    h("div", { class: "head" }, parts.title, parts.badge, parts.reason, parts.actions),
    h("p", { class: "ids quiet mono" }, callId),
    parts.said, parts.move, parts.suppress, parts.waits, parts.suppressed, parts.fault, parts.promises,
    h("div", { class: "columns" },
      h("section", { class: "card", "aria-labelledby": "timeline-title" },
        h("div", { class: "bar" },
          h("h3", { id: "timeline-title" }, "Timeline"),
          h("label", { class: "check", for: "every" }, parts.every, "every step")),
        parts.origin, parts.rows, parts.next),
      h("section", { class: "card evidence", "aria-label": "The call’s data" }, parts.tabs, parts.panel)));
  section.replaceChildren(parts.state, h("a", { class: "back", href: "#/" }, "← all calls"), parts.body);
  markTabs();
  clearInterval(ticking);
  ticking = setInterval(showNext, 100);
}

// ── head ──

function showHead(setup) {
  parts.title.textContent = now.to;
  parts.badge.dataset.status = now.status;
  parts.badge.textContent = now.status.replaceAll("_", " ");
  const code = now.sipStatusCode ? `SIP ${now.sipStatusCode}` : "";
  const ended = now.reason && now.reason !== now.status ? now.reason.replaceAll("_", " ") : "";
  const reason = now.waitingFor ? waitsFor(now) : ended;
  parts.reason.textContent = [reason, code].filter(Boolean).join(" · ");
  const actions = [];
  if (OPEN.has(now.status)) {
    if (setup.standIn && now.status !== "queued") actions.push({ label: "Callee hangs up", path: "hangup" });
    actions.push({ label: "Cancel", path: "cancel" });
  }
  if (mine()) actions.unshift({ label: "Suppress number", form: "suppress" });
  if (mine() && now.status === "queued") actions.unshift({ label: "Move", form: "move" });
  else parts.move.hidden = true;
  keep(parts.actions, actions, ({ label }) => label, ({ label, path, form }) => h("button", {
    type: "button", class: "small", data: form ? { form } : {}, "aria-expanded": form ? String(!parts[form].hidden) : null,
    onclick: ({ currentTarget }) => form ? unfold(form, currentTarget) : act(currentTarget, `calls/${parts.callId}/${path}`),
  }, label));
  showSuppressions();
  parts.fault.hidden = !now.fault;
  if (now.fault) parts.fault.replaceChildren(h("strong", {}, `${now.fault.label}.`), " ", now.fault.expect);
  keep(parts.promises, now.promises, ({ name }) => name, ({ name, figure, state }) =>
    h("li", { data: { state } },
      h("span", { class: "mark", "aria-hidden": "true" }, { kept: "✓", broken: "✕", open: "…" }[state]),
      h("span", {}, h("span", { class: "name" }, name), h("span", { class: "figure" }, figure)),
      h("span", { class: "unseen" }, { kept: "kept", broken: "broken", open: "not known yet" }[state])));
}

/** Whether the call is one of the workspace whose key the console has. */
const mine = () => now.record.workspaceId === parts.setup.workspaceId;

/** Sends a request of a button and says why it was refused. The decoded answer, or null. */
async function act(button, path, method = "POST", wanted = {}) {
  button.disabled = true;
  try {
    const { status, body } = await send(method, path, wanted);
    parts.said.hidden = status < 300;
    const errors = (body?.errors ?? []).map(({ field, message }) => `${field} ${message}`).join("; ");
    parts.said.textContent = status < 300 ? "" : `${status}: ${errors || body?.message || "refused"}`;
    return status < 300 ? body : null;
  } catch {
    parts.said.hidden = false;
    parts.said.textContent = "The console does not answer.";
    return null;
  } finally {
    button.disabled = false;
  }
}

// ── moving the call, suppressing its number ──

function unfold(form, button) {
  parts[form].hidden = !parts[form].hidden;
  button.setAttribute("aria-expanded", String(!parts[form].hidden));
  if (parts[form].hidden) return;
  if (form === "move" && now.record.scheduledAt) parts.move.querySelector("input").value = momentValue(now.record.scheduledAt);
  parts[form].querySelector("input, select").focus();
}

function fold(form) {
  parts[form].hidden = true;
  parts.actions.querySelector(`[data-form=${form}]`)?.setAttribute("aria-expanded", "false");
}

function moveForm() {
  const at = h("input", { id: "move-at", type: "datetime-local", step: "1", required: true });
  const move = async (button, scheduledAt) => {
    if (await act(button, `calls/${parts.callId}`, "PATCH", { scheduled_at: scheduledAt })) fold("move");
  };
  return h("form", { class: "inline", "aria-label": "Move the call", hidden: true, onsubmit: (event) => {
    event.preventDefault();
    move(event.submitter, moment(at));
  } },
  h("label", {}, "Not before (your time)", at),
  h("button", { class: "small", type: "submit" }, "Move the call"),
  h("button", { class: "small", type: "button", onclick: ({ currentTarget }) => move(currentTarget, null) }, "As soon as allowed"));
}

const numberPath = () => `suppression/${encodeURIComponent(now.to)}`;

function suppressForm() {
  const scope = h("select", { id: "suppress-scope" });
  const reason = h("input", { id: "suppress-reason", maxlength: "256", autocomplete: "off", placeholder: "asked to be left alone" });
  const form = h("form", { class: "inline", "aria-label": "Suppress the number", hidden: true, onsubmit: async (event) => {
    event.preventDefault();
    const wanted = { scope: scope.value, ...(reason.value ? { reason: reason.value } : {}) };
    const answer = await act(event.submitter, numberPath(), "PUT", wanted);
    if (!answer) return;
    showSuppressed(answer.suppressions);
    fold("suppress");
  } },
  h("label", {}, "For", scope), h("label", {}, "Reason", reason),
  h("button", { class: "small", type: "submit" }, "Suppress"));
  fillScopes(scope);
  return form;
}

function fillScopes(select) {
  const scopes = ["all", "default", ...policies.filter((name) => name !== "default")];
  keep(select, scopes, (name) => name, (name) => h("option", { value: name },
    { all: "all calls", default: "calls without a purpose" }[name] ?? `the purpose ${name}`));
}

/** Offers the workspace's policies as scopes of a suppression. */
export function offerScopes(names) {
  policies = names;
  const select = parts?.suppress.querySelector("select");
  if (select) fillScopes(select);
}

/** Asks for the number's suppressions when the call has changed: its end, or an agent's report, may be of one. */
async function showSuppressions() {
  const version = JSON.stringify([now.status, now.record.events.length]);
  if (!mine() || parts.asked === version) return;
  parts.asked = version;
  const callId = parts.callId;
  const answer = await send("GET", numberPath()).catch(() => null);
  if (parts?.callId === callId && answer?.status === 200) showSuppressed(answer.body.suppressions);
}

function showSuppressed(found) {
  parts.suppressed.hidden = !found.length;
  keep(parts.suppressed, found, ({ scope }) => scope, ({ scope, reason, at, expiresAt, by }) => {
    const remove = async ({ currentTarget }) => {
      const answer = await act(currentTarget, `${numberPath()}?scope=${encodeURIComponent(scope)}`, "DELETE");
      if (answer) showSuppressed(answer.suppressions);
    };
    return h("li", { class: "notice bad" },
      h("span", {}, h("strong", {}, `Suppressed for ${scope === "all" ? "all calls" : `the purpose ${scope}`}`),
        reason ? `: “${reason}”` : "", ` · since ${when(at, [])}${expiresAt ? `, until ${when(expiresAt, [])}` : ""}, `, author(by)),
      h("button", { type: "button", class: "small", "aria-label": `Remove the suppression for ${scope}`, onclick: remove }, "Remove"));
  });
}

function author({ keyId, label, callId, operator }) {
  if (callId) return ["by the callee, in ", callId === parts.callId ? "this call" : h("a", { href: `#/calls/${callId}` }, "another call")];
  if (operator) return "by the operator";
  return keyId ? `by the API key ${label ? `${label} (${keyId})` : keyId}` : "by a client without a key";
}

// ── timeline ──

function showTimeline() {
  if (!now) return;
  const every = parts.every.checked;
  parts.origin.replaceChildren("Milliseconds since ", h("span", { class: "mono" }, clock(now.placedAt)));
  const seen = new Map();
  const rows = now.rows.filter((row) => every || !row.minor).map((row) => {
    const name = row.folded.length ? `retries ${row.delivery}` : `${row.at} ${row.who} ${row.what}`;
    const times = (seen.get(name) ?? 0) + 1;
    seen.set(name, times);
    return { ...row, name: `${name} ${times}`, after: row.at - now.placedAt };
  });
  rows.forEach((row, place) => (row.gap = place > 0 && row.at - rows[place - 1].at >= GAP_MS));
  keep(parts.rows, rows, (row) => row.name, timelineRow);
  showNext();
}

function timelineRow(row, before) {
  return h("li", { class: [row.minor && "minor", row.gap && "gap"].filter(Boolean).join(" ") || null, data: { family: FAMILIES[row.who] ?? "call", tone: row.tone } },
    h("time", { class: "mono at", title: clock(row.at), datetime: new Date(row.at).toISOString() }, count(row.after)),
    h("span", { class: "who" }, row.who),
    row.folded.length ? foldedRows(row, before) : h("span", { class: "happened" }, happened(row)));
}

const happened = ({ what, detail }) => [h("span", { class: "what" }, what), " ", h("span", { class: "detail" }, detail)];

/** The failed attempts at a delivery: one line, with each of them on request. */
function foldedRows(row, before) {
  return h("details", { class: "happened", open: before?.querySelector("details")?.open ?? false },
    h("summary", {}, happened(row)),
    h("ol", { class: "folded", "aria-label": "Failed attempts" }, row.folded.map((one) =>
      h("li", {}, h("span", { class: "mono" }, clock(one.at)), ` ${one.who}: ${one.what}, ${one.detail}`))));
}

function showNext() {
  if (!parts || !now) return;
  // The head says what it waits for: this adds from when on it may ring.
  parts.waits.hidden = !now.earliestRingAt;
  const waits = now.earliestRingAt ? waiting(now, now.zones) : "";
  if (parts.waits.textContent !== waits) parts.waits.textContent = waits;
  const left = now.next ? now.next.at - Date.now() : 0;
  parts.next.hidden = left <= 0;
  if (left > 0) parts.next.textContent = `in ${duration(left)} ${now.next.what}`;
}

// ── the call's data ──

function markTabs() {
  for (const tab of parts.tabs.children) {
    const chosen = tab.dataset.name === parts.tab;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  }
  parts.panel.setAttribute("aria-labelledby", `tab-${parts.tab}`);
}

function chooseTab(name) {
  parts.tab = name;
  localStorage.setItem(TAB, name);
  parts.panel.replaceChildren();
  parts.shown = null;
  markTabs();
  showTab();
}

function moveTab(event) {
  const names = Object.keys(TABS);
  const place = names.indexOf(parts.tab);
  const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: names.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  chooseTab(names[(to + names.length) % names.length]);
  document.getElementById(`tab-${parts.tab}`).focus();
}

function showTab() {
  if (!now) return;
  ({ gates: showGates, record: showRecord, webhooks: showWebhooks, logs: showLogs, api: showAnswer })[parts.tab]();
}

/** Whether the panel does not show `content` yet: an unchanged panel keeps its selection and scroll position. */
function changed(content) {
  const mark = JSON.stringify([parts.tab, content]);
  if (parts.shown === mark) return false;
  parts.shown = mark;
  return true;
}

function replacePanel(...nodes) {
  const scrolled = parts.panel.querySelector(".code")?.scrollTop ?? 0;
  parts.panel.replaceChildren(...nodes);
  const box = parts.panel.querySelector(".code");
  if (box) box.scrollTop = scrolled;
}

function showGates() {
  const { receipt, zones } = now;
  if (!changed([receipt, now.status, now.reason])) return;
  if (!receipt) {
    const told = now.status === "queued" ? "It has not been dialled: the receipt of what let it ring is written right before."
      : "It has not been dialled: there is no receipt.";
    replacePanel(h("p", { class: "help" }, told));
    return;
  }
  replacePanel(
    h("p", { class: "help" }, `The ring receipt: what let it ring at ${when(new Date(receipt.at).toISOString(), zones)}, in the order asked.`,
      receipt.putBack ? " It was put back before anything rang." : ""),
    gateList(receipt.gates, zones));
}

function showRecord() {
  if (!changed([now.record, now.deliveries])) return;
  replacePanel(
    h("p", { class: "help" }, "The call’s item in CallsTable."),
    jsonBox(JSON.stringify(now.record), "Record"));
}

function showWebhooks() {
  if (!changed([now.deliveries, now.hooks.length])) return;
  if (!parts.panel.querySelector(".deliveries")) {
    parts.panel.replaceChildren(h("p", { class: "empty" }), h("ul", { class: "deliveries" }));
  }
  const empty = parts.panel.querySelector(".empty");
  empty.hidden = now.deliveries.length > 0;
  empty.textContent = now.record.callbackUrl ? "No event has been sent yet." : "This call has no callback URL: nothing is sent.";
  const deliveries = now.deliveries.map((delivery) => ({
    ...delivery,
    type: now.record.events[delivery.sequence - 1]?.type ?? `event ${delivery.sequence}`,
    hooks: now.hooks.filter((hook) => hook.sequence === delivery.sequence),
  }));
  keep(parts.panel.querySelector(".deliveries"), deliveries, ({ sequence }) => sequence, deliveryItem);
}

function deliveryItem(delivery, before) {
  const { sequence, type, state, attempts = [], hooks } = delivery;
  const open = before?.querySelector(".received")?.open ?? false;
  const path = `calls/${parts.callId}/deliveries/${sequence}/replay`;
  const body = hooks.at(-1);
  return h("li", {},
    h("div", { class: "bar" },
      h("span", {}, h("span", { class: "what" }, type), " ", h("span", { class: "badge", data: { status: state } }, state)),
      h("button", { type: "button", class: "small", "aria-label": `Send again: ${type}`,
        onclick: (event) => act(event.currentTarget, path) }, "Send again")),
    h("ol", { class: "attempts" }, attemptItems(attempts, before)),
    body
      ? h("details", { class: "received", open },
        h("summary", {}, `Body${hooks.length > 1 ? `, received ${hooks.length} times` : ""}`,
          h("span", { class: "quiet" }, body.verified ? " · signature verified" : ` · ${body.error}`)),
        jsonBox(body.body, `Body of ${type}`),
        jsonBox(JSON.stringify(body.headers), `Headers of ${type}`))
      : h("p", { class: "help" }, "The local receiver did not get it."));
}

const failed = ({ status }) => !(status >= 200 && status < 300);

/** The attempts in their order; several failed ones in a row are one line, with each of them on request. */
function attemptItems(attempts, before) {
  const runs = [];
  for (const attempt of attempts) {
    const run = runs.at(-1);
    if (run && failed(attempt) && failed(run[0])) run.push(attempt);
    else runs.push([attempt]);
  }
  const opened = [...before?.querySelectorAll(".retries") ?? []].map(({ open }) => open);
  return runs.map((run) => {
    if (run.length === 1) return attemptItem(run[0]);
    const outcomes = [...new Set(run.map(outcome))].join(", ");
    return h("li", {}, h("details", { class: "retries", open: opened.shift() ?? false },
      h("summary", {}, h("span", { class: "mono" }, clock(run[0].at)), " ",
        h("strong", {}, outcomes), h("span", { class: "quiet" }, ` ${run.length} attempts failed`)),
      h("ol", {}, run.map(attemptItem))));
  });
}

const outcome = (attempt) => String(attempt.status ?? attempt.error ?? "no answer");

function attemptItem(attempt) {
  return h("li", {},
    h("span", { class: "mono" }, clock(attempt.at)), " ",
    h("strong", {}, outcome(attempt)),
    h("span", { class: "quiet" }, ` after ${count(attempt.ms)} ms`),
    attempt.answer ? h("span", { class: "quiet answer mono" }, attempt.answer) : null);
}

function showLogs() {
  if (!parts.panel.querySelector("select")) {
    const select = h("select", { "aria-label": "Which log", onchange: () => {
      parts.shown = null;
      showLogs();
    } }, h("option", { value: "" }, "Lines about this call"),
    h("optgroup", { label: "Whole logs" }, parts.setup.logs.map((name) => h("option", { value: name }, `${name}.log`))));
    const again = h("button", { type: "button", class: "small", onclick: () => {
      parts.shown = null;
      showLogs();
    } }, "Read again");
    parts.panel.replaceChildren(h("div", { class: "bar" }, select, again), h("div", { class: "log" }));
  }
  const name = parts.panel.querySelector("select").value;
  const box = parts.panel.querySelector(".log");
  if (name) showWholeLog(box, name);
  else if (changed(now.lines.length)) {
    if (!now.lines.length) box.replaceChildren(h("p", { class: "empty" }, "No function has written about this call yet."));
    else {
      const lines = h("ol", { class: "lines code", tabindex: "0", "aria-label": "Log lines" });
      lines.append(...now.lines.map(logLine));
      box.replaceChildren(lines);
    }
  }
}

async function showWholeLog(box, name) {
  if (!changed(name)) return;
  const { status, text } = await send("GET", `logs/${encodeURIComponent(name)}`);
  const shown = status === 200 ? text || "(empty)" : `${status}: this log cannot be read`;
  const pre = h("pre", { class: "code", tabindex: "0", role: "region", "aria-label": `${name}.log` }, shown);
  box.replaceChildren(pre);
  pre.scrollTop = pre.scrollHeight;
}

const SHOWN_ALREADY = new Set(["level", "location", "message", "timestamp", "service", "call_id", "xray_trace_id"]);

function logLine({ function: name, text }) {
  const said = JSON.parse(text);
  const rest = Object.entries(said).filter(([key]) => !SHOWN_ALREADY.has(key));
  const at = (said.timestamp ?? "").slice(11, 23);
  return h("li", { data: { level: said.level ?? "" } },
    h("span", { class: "quiet" }, `${at} ${name} `),
    h("strong", {}, `${said.message ?? text}`),
    rest.length ? h("span", {}, " ", rest.map(([key, value]) =>
      [h("span", { class: "json-key" }, `${key}=`), `${typeof value === "string" ? value : JSON.stringify(value)} `])) : null);
}

async function showAnswer() {
  const version = [now.record.events.length, now.status, now.waitingFor, now.earliestRingAt];
  if (!changed(version)) return;
  const path = `/v1/api/call/${parts.callId}`;
  const callId = parts.callId;
  const { status, text } = await send("GET", `calls/${callId}`);
  if (parts?.callId !== callId || parts.tab !== "api") return;
  replacePanel(h("p", { class: "help" }, "GET ", h("span", { class: "mono" }, path), ` answers ${status}:`), jsonBox(text, "API answer"));
}
