// Elements without HTML text: the content of a call is only ever inserted as text.

/** An element. `on…` properties listen, `data` sets data attributes, the rest are attributes (false: absent). */
export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

const COPIED_MS = 1500;
const FOCUSABLE = "a, button, summary, input, select, textarea, [tabindex]";

/**
 * Makes `parent` hold one element for each item, in their order. An element is kept as long as its item's key and
 * content stay the same, so that focus, selection and open details survive changes around them. An element that is
 * made anew passes the focus on to the same place in its successor.
 */
export function keep(parent, items, key, make) {
  const there = new Map([...parent.children].map((element) => [element.keptKey, element]));
  const wanted = items.map((item) => {
    const name = key(item), content = JSON.stringify(item);
    let element = there.get(name);
    if (!element || element.keptContent !== content) {
      const fresh = make(item, element);
      fresh.keptKey = name;
      fresh.keptContent = content;
      if (element && element !== fresh && element.contains(document.activeElement)) {
        const place = [...element.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
        element.replaceWith(fresh);
        (fresh.querySelectorAll(FOCUSABLE)[place] ?? fresh).focus();
      }
      element = fresh;
    }
    return element;
  });
  for (const element of [...parent.children]) if (!wanted.includes(element)) element.remove();
  wanted.forEach((element, place) => {
    if (parent.children[place] !== element) parent.insertBefore(element, parent.children[place] ?? null);
  });
}

/** A date's time of day with milliseconds. */
export function clock(ms) {
  const date = new Date(ms);
  return `${date.toLocaleTimeString("en-GB")}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

const REASONS = {
  scheduled_at: "its scheduled time", calling_window: "its calling hours", frequency: "time since other calls",
  slot: "a slot", trunk: "its trunk", paused: "the end of the pause", retry: "its next attempt",
};

/** What a waiting call waits for, in words. */
export const waitsFor = ({ waitingFor }) => `waits for ${REASONS[waitingFor] ?? waitingFor}`;

const UNITS = [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]];

/** A duration in the units that fit it: `0.4 s`, `42 s`, `3 min 05 s`, `14 h 03 min`, `3 d 02 h`. */
export function duration(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const [length, unit, below, small] = UNITS.find(([length]) => seconds >= length);
  return `${Math.floor(seconds / length)} ${unit} ${String(Math.floor(seconds % length / below)).padStart(2, "0")} ${small}`;
}

const whole = new Intl.NumberFormat("en");
export const count = (number) => whole.format(number);

/** A field's local date and time as RFC 3339; null when it is empty. */
export function moment(input) {
  return input.value ? new Date(input.value).toISOString() : null;
}

/** A moment as the value of such a field. */
export function momentValue(ms) {
  const date = new Date(ms);
  return new Date(ms - date.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}

/** A button that copies `value` to the clipboard and says so. */
export function copyButton(label, value) {
  const button = h("button", { type: "button", class: "small", "aria-label": `Copy ${label}`, onclick: async () => {
    try {
      await navigator.clipboard.writeText(value);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Cannot copy";
    }
    setTimeout(() => (button.textContent = "Copy"), COPIED_MS);
  } }, "Copy");
  return button;
}

/** Sends JSON, or a text that is JSON, to the console's own server; the answer's status and decoded body. */
export async function send(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: method === "GET" ? {} : { "content-type": "application/json" },
    body: body === undefined || typeof body === "string" ? body : JSON.stringify(body),
  });
  const text = await answer.text();
  try {
    return { status: answer.status, body: JSON.parse(text), text };
  } catch {
    return { status: answer.status, body: null, text };
  }
}
