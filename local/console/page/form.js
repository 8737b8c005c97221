// Placing a call: the form, the magic numbers, the fates, and the numbers whose fate is overridden.
import { h, keep, send } from "./dom.js";

const FIELDS = ["to", "call_agent_id", "callback_url", "dynamic_variables", "metadata"];
const OFFERED = { "0000": "answers", "0001": "busy", "0002": "no answer", "0003": "rejects", "0005": "carrier 503", "0006": "no agent" };
const EXAMPLE = {
  call_agent_id: "a1b2c3d4e5f6a7b8c9d0e1f2",
  dynamic_variables: JSON.stringify({ firstName: "Ada", lastName: "Lovelace", Zipcode: "94105" }, null, 2),
  metadata: JSON.stringify({ crmId: "0042", campaign: { name: "autumn", wave: 2 } }, null, 2),
};
const DRAFT = "ringonce-draft";

const form = document.getElementById("place");
const field = (name) => form.elements.namedItem(name);

/** Makes the form work. `placed` is told the id of each call. */
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
  offerFates(setup);
  const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
  const start = { to: setup.numbers[0]?.number ?? "", callback_url: setup.callbackUrl, ...EXAMPLE, ...draft };
  for (const name of FIELDS) field(name).value = start[name] ?? "";
  form.addEventListener("input", () => {
    const now = Object.fromEntries(FIELDS.map((name) => [name, field(name).value]));
    // Where the receiver listens changes with every stack.
    if (now.callback_url === setup.callbackUrl) delete now.callback_url;
    sessionStorage.setItem(DRAFT, JSON.stringify(now));
    explain(setup);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    place(setup, placed);
  });
  explain(setup);
  showOverrides(setup);
}

function offerFates(setup) {
  const select = field("fate");
  select.append(h("option", { value: "" }, setup.standIn ? "As the number says" : "Nothing is made to happen"));
  for (const group of new Set(setup.fates.map((fate) => fate.group))) {
    const members = setup.fates.filter((fate) => fate.group === group);
    select.append(h("optgroup", { label: group }, members.map((fate) => h("option", { value: fate.name }, fate.label))));
  }
}

function explain(setup) {
  const typed = field("to").value.replace(/[^+\d]/g, "");
  const known = setup.numbers.find(({ number }) => number === typed);
  document.getElementById("to-help").textContent = !setup.standIn
    ? "A real phone rings."
    : known ? `This number ${known.does}.` : "Any other +1 number is answered and hangs up by itself.";
  const fate = setup.fates.find(({ name }) => name === field("fate").value);
  document.getElementById("fate-help").textContent = fate?.expect ?? "";
}

function complain(errors) {
  for (const name of FIELDS) {
    const told = errors[name];
    const place = document.getElementById(`${name}-error`);
    place.textContent = told ?? "";
    place.hidden = !told;
    field(name).toggleAttribute("aria-invalid", Boolean(told));
    if (told) field(name).setAttribute("aria-invalid", "true");
  }
  const refused = document.getElementById("refused");
  refused.textContent = errors[""] ?? "";
  refused.hidden = !errors[""];
  const first = FIELDS.find((name) => errors[name]);
  if (first) {
    if (first !== "to") document.getElementById("more").open = true;
    field(first).focus();
  }
}

/** The request's body. Variables and metadata go in as they were typed, so that no number is written anew. */
function bodyOf(errors, fate) {
  const members = [];
  for (const name of FIELDS) {
    let text = field(name).value.trim();
    // The receiver is told how to answer by path, so such a call has one of its own.
    if (name === "callback_url" && text && fate?.path) text += `/${crypto.randomUUID().slice(0, 8)}`;
    if (!text && name !== "to" && name !== "call_agent_id") continue;
    if (name === "dynamic_variables" || name === "metadata") {
      try {
        JSON.parse(text);
      } catch (error) {
        errors[name] = `is not JSON: ${error.message}`;
        continue;
      }
      members.push(`${JSON.stringify(name)}:${text}`);
    } else {
      members.push(`${JSON.stringify(name)}:${JSON.stringify(text)}`);
    }
  }
  return `{${members.join(",")}}`;
}

async function place(setup, placed) {
  const errors = {};
  const request = bodyOf(errors, setup.fates.find(({ name }) => name === field("fate").value));
  complain(errors);
  if (Object.keys(errors).length) return;
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  button.textContent = "Placing …";
  try {
    const { status, body } = await send("POST", "calls", { request, fate: field("fate").value });
    if (status === 200 && body.callId) {
      field("fate").value = "";
      explain(setup);
      placed(body.callId);
    } else {
      complain(refusal(status === 200 ? body.answer : body, status === 200 ? body.status : status));
    }
  } catch {
    complain({ "": "The console does not answer. Does the stack still run?" });
  } finally {
    button.disabled = false;
    button.textContent = "Place call";
    showOverrides(setup);
  }
}

function refusal(answer, status) {
  const errors = {};
  for (const { field: name, message } of answer?.errors ?? []) {
    const known = FIELDS.find((one) => name === one || name.startsWith(`${one}.`));
    errors[known ?? ""] = known ? message : `${name} ${message}`;
  }
  if (!Object.keys(errors).length) errors[""] = `${status}: ${answer?.message ?? "no answer"}`;
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
      h("button", { type: "button", class: "small", "aria-label": `Take back the fate of ${number}`, onclick: remove }, "Take back"));
  });
}
