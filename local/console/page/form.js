// Placing a call: the form, its preview, the numbers with a script, the faults, and the numbers whose outcome is
// overridden.
import { offerScopes } from "./call.js";
import { h, keep, moment, send } from "./dom.js";
import { gateList, waiting, zonesOf } from "./gates.js";

// So many requests are sent at a time when several calls are placed.
const AT_A_TIME = 5;
const TIMES = ["scheduled_at", "expires_at"];
const JSON_FIELDS = ["dynamic_variables", "metadata", "consent"];
const FIELDS = ["to", "call_agent_id", "callback_url", "dynamic_variables", "metadata", ...TIMES, "purpose", "time_zone", "consent"];
const OFFERED = { "0000": "answers", "0001": "busy", "0002": "no answer", "0003": "rejects", "0005": "carrier 503", "0006": "no agent" };
const EXAMPLE = {
  call_agent_id: "a1b2c3d4e5f6a7b8c9d0e1f2",
  dynamic_variables: JSON.stringify({ firstName: "Ada", lastName: "Lovelace", Zipcode: "94105" }, null, 2),
  metadata: JSON.stringify({ crmId: "0042", campaign: { name: "autumn", wave: 2 } }, null, 2),
  consent: JSON.stringify({ basis: "web form", obtained_at: "2026-11-02T09:30:00Z", reference: "form 0042" }, null, 2),
};
const DRAFT = "ringonce-draft";

const form = document.getElementById("place");
const field = (name) => form.elements.namedItem(name);

/** Sets up the form. Calls `placed` with the id of each call that was accepted. */
export function setUp(setup, placed) {
  for (const { number, does } of setup.numbers) {
    document.getElementById("numbers").append(h("option", { value: number }, does));
    const label = OFFERED[number.slice(-4)];
    if (label) {
      const choose = () => {
        field("to").value = number;
        field("to").dispatchEvent(new Event("input", { bubbles: true }));
      };
      document.getElementById("magic").append(
        h("button", { type: "button", class: "chip", title: `${number}: ${does}`, onclick: choose },
          h("span", { class: "mono" }, number.slice(-4)), ` ${label}`));
    }
  }
  offerFaults(setup);
  const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
  const start = { to: setup.numbers[0]?.number ?? "", callback_url: setup.callbackUrl, ...EXAMPLE, ...draft };
  for (const name of FIELDS) field(name).value = start[name] ?? "";
  form.addEventListener("input", () => {
    const now = Object.fromEntries(FIELDS.filter((name) => !TIMES.includes(name)).map((name) => [name, field(name).value]));
    // The receiver's port changes with every stack.
    if (now.callback_url === setup.callbackUrl) delete now.callback_url;
    sessionStorage.setItem(DRAFT, JSON.stringify(now));
    document.getElementById("previewed").hidden = true;
    explain(setup);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    place(setup, placed);
  });
  askPolicies();
  // An operator may have changed them meanwhile.
  document.getElementById("rules").addEventListener("toggle", askPolicies);
  document.getElementById("preview").addEventListener("click", (event) => preview(event.currentTarget));
  explain(setup);
  showOverrides(setup);
}

/** Offers the workspace's policies here and as scopes of a suppression. */
async function askPolicies() {
  const { status, body } = await send("GET", "policies").catch(() => ({ status: 0 }));
  if (status !== 200) return;
  offerPolicies(body.policies);
  offerScopes(body.policies);
}

function offerPolicies(policies) {
  keep(document.getElementById("policies"), policies, (name) => name, (name) => h("option", { value: name }));
  const names = policies.filter((name) => name !== "default");
  document.getElementById("purpose-help").textContent = [
    `Empty: ${policies.includes("default") ? "default" : "at any hour, as there is no policy “default”"}.`,
    names.length ? `There is ${names.join(", ")}.` : ""].join(" ").trim();
}

function offerFaults(setup) {
  const select = field("fault");
  select.append(h("option", { value: "" }, setup.standIn ? "What the number does" : "No fault"));
  for (const group of new Set(setup.faults.map((fault) => fault.group))) {
    const members = setup.faults.filter((fault) => fault.group === group);
    select.append(h("optgroup", { label: group }, members.map((fault) => h("option", { value: fault.name }, fault.label))));
  }
}

function explain(setup) {
  const typed = field("to").value.replace(/[^+\d]/g, "");
  const known = setup.numbers.find(({ number }) => number === typed);
  document.getElementById("to-help").textContent = !setup.standIn
    ? "A real phone rings."
    : known ? `This number ${known.does}.` : "Any other +1 number is answered and hangs up by itself.";
  const fault = setup.faults.find(({ name }) => name === field("fault").value);
  document.getElementById("fault-help").textContent = fault?.expect ?? "";
}

function complain(errors) {
  for (const name of [...FIELDS, "times"]) {
    const message = errors[name];
    const place = document.getElementById(`${name}-error`);
    place.textContent = message ?? "";
    place.hidden = !message;
    if (message) field(name).setAttribute("aria-invalid", "true");
    else field(name).removeAttribute("aria-invalid");
  }
  const refused = document.getElementById("refused");
  refused.textContent = errors[""] ?? "";
  refused.hidden = !errors[""];
  const first = [...FIELDS, "times"].find((name) => errors[name]);
  if (first) {
    const folded = field(first).closest("details");
    if (folded) folded.open = true;
    field(first).focus();
  }
}

/** The request's body. Variables and metadata are inserted as typed, so that no number is reformatted. */
function bodyOf(errors, fault) {
  const members = [];
  for (const name of FIELDS) {
    let text = field(name).value.trim();
    // The receiver's answers are set by path, so a call with a fault of its endpoint has a path of its own.
    if (name === "callback_url" && text && fault?.path) text += `/${crypto.randomUUID().slice(0, 8)}`;
    if (!text && name !== "to" && name !== "call_agent_id") continue;
    if (JSON_FIELDS.includes(name)) {
      try {
        JSON.parse(text);
      } catch (error) {
        errors[name] = `is not JSON: ${error.message}`;
        continue;
      }
      members.push(`${JSON.stringify(name)}:${text}`);
    } else if (TIMES.includes(name)) {
      members.push(`${JSON.stringify(name)}:${JSON.stringify(moment(field(name)))}`);
    } else {
      members.push(`${JSON.stringify(name)}:${JSON.stringify(text)}`);
    }
  }
  return `{${members.join(",")}}`;
}

/** Places the call so many times. Returns the first call's id, or the errors of a request that was refused. */
async function placeAll(times, body, fault) {
  let left = times, first = null, refused = null;
  const one = async () => {
    while (left > 0 && !refused) {
      left -= 1;
      const { status, body: answer } = await send("POST", "calls", { request: body(), fault });
      if (status === 200 && answer.callId) first ??= answer.callId;
      else refused ??= refusal(status === 200 ? answer.answer : answer, status === 200 ? answer.status : status);
    }
  };
  await Promise.all(Array.from({ length: Math.min(times, AT_A_TIME) }, one));
  return { first, refused };
}

async function place(setup, placed) {
  const errors = {};
  const chosen = setup.faults.find(({ name }) => name === field("fault").value);
  const times = Number(field("times").value);
  bodyOf(errors, chosen);
  if (!(Number.isInteger(times) && times >= 1 && times <= 100)) errors.times = "must be a whole number from 1 to 100";
  complain(errors);
  if (Object.keys(errors).length) return;
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  button.textContent = "Placing …";
  try {
    const { first, refused } = await placeAll(times, () => bodyOf({}, chosen), field("fault").value);
    if (refused) complain(refused);
    else {
      field("fault").value = "";
      field("times").value = "1";
      for (const name of TIMES) field(name).value = "";
      document.getElementById("previewed").hidden = true;
      explain(setup);
    }
    if (first) placed(first);
  } catch {
    complain({ "": "The console does not answer. Does the stack still run?" });
  } finally {
    button.disabled = false;
    button.textContent = "Place call";
    showOverrides(setup);
  }
}

/** Shows what would become of the call if it were placed now. */
async function preview(button) {
  const errors = {};
  const body = bodyOf(errors, null);
  const box = document.getElementById("previewed");
  box.hidden = true;
  complain(errors);
  if (Object.keys(errors).length) return;
  button.disabled = true;
  try {
    const { status, body: answer } = await send("POST", "calls/preview", body);
    if (status !== 200) return complain(refusal(answer, status));
    const zones = zonesOf(answer.gates);
    const verdict = { ring: "Placed now, it rings at once.", wait: waiting(answer, zones, "Placed now, it"), refuse: "Placed now, it never rings." }[answer.decision];
    document.getElementById("said").textContent = verdict;
    box.replaceChildren(
      h("p", { class: "verdict", data: { decision: answer.decision } }, verdict),
      gateList(answer.gates, zones));
    box.hidden = false;
  } catch {
    complain({ "": "The console does not answer. Does the stack still run?" });
  } finally {
    button.disabled = false;
  }
}

function refusal(answer, status) {
  const errors = {};
  for (const { field: name, message } of answer?.errors ?? []) {
    const known = FIELDS.find((one) => name === one || name.startsWith(`${one}.`));
    errors[known ?? ""] = known ? message : `${name} ${message}`;
  }
  if (!Object.keys(errors).length) errors[""] = `${status}: ${answer?.message ?? "no answer"}`;
  else if (status !== 400) errors[""] ??= `Refused with ${status} ${answer.code}`;
  return errors;
}

async function showOverrides(setup) {
  if (!setup.standIn) return;
  const { status, body } = await send("GET", "numbers");
  if (status !== 200) return;
  const box = document.getElementById("overrides");
  const found = Object.entries(body);
  box.hidden = !found.length;
  keep(box.querySelector("ul"), found, ([number]) => number, ([number, outcome]) => {
    const remove = async () => {
      await send("DELETE", `numbers/${encodeURIComponent(number)}`);
      showOverrides(setup);
    };
    return h("li", {}, h("span", { class: "mono" }, number), h("span", { class: "quiet" }, outcome.replaceAll("_", " ")),
      h("button", { type: "button", class: "small", "aria-label": `Reset ${number}`, onclick: remove }, "Reset"));
  });
}
