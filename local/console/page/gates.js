// The gates that a call passes before it rings: what each saw, with times as the callee's clock shows them.
import { clock, duration, h, waitsFor } from "./dom.js";

const DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
// More local times than this are shown by the earliest and the latest.
const TIMES_SHOWN = 3;
const SOURCES = { number: "zone by the number", time_zone: "zone given with the call", policy: "zone of the policy" };

/** A date by the clock of `zone` (undefined: of this browser): `Sun 29 Nov, 08:00`, with seconds if it has any. */
function inZone(date, timeZone) {
  const wanted = { timeZone, weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
  if (date.getUTCSeconds()) wanted.second = "2-digit";
  return new Intl.DateTimeFormat("en-GB", wanted).format(date).replace(/^(\w+),/, "$1");
}

/** Zones by the time that their clocks show: a number of a whole country may be in dozens. */
function grouped(entries) {
  const groups = new Map();
  for (const [zone, text, order] of entries) {
    const group = groups.get(text) ?? { text, order, zones: [] };
    group.zones.push(zone);
    groups.set(text, group);
  }
  return [...groups.values()].sort((a, b) => a.order - b.order);
}

function named(entries) {
  const groups = grouped(entries);
  const one = ({ text, zones }) => `${text} in ${zones[0]}${zones.length > 1 ? ` and ${zones.length - 1} more` : ""}`;
  if (groups.length <= TIMES_SHOWN) return groups.map(one).join("; ");
  return `${one(groups[0])} to ${one(groups.at(-1))} (${entries.length} zones)`;
}

/** A moment (ISO 8601) by the callee's clock, in each of its zones; by this browser's if none is known. */
export function when(iso, zones) {
  const date = new Date(iso);
  try {
    // Formatted and read back: zones are listed from the earliest clock to the latest.
    if (zones.length) return named(zones.map((zone) => [zone, inZone(date, zone), clockOf(date, zone)]));
  } catch {
    // This browser's data lacks the zone.
  }
  return `${inZone(date)} your time`;
}

const clockOf = (date, timeZone) => Date.parse(`${date.toLocaleString("sv", { timeZone }).replace(" ", "T")}Z`);

/** Local times as the API writes them: zone -> ISO 8601 with its offset. */
function localTimes(times) {
  return named(Object.entries(times).map(([zone, text]) => {
    const clock = new Date(`${text.slice(0, 19)}Z`);
    return [zone, inZone(clock, "UTC"), clock.getTime()];
  }));
}

/** The zones in which the gates have looked at a window. */
export const zonesOf = (gates) => Object.keys(gates.find(({ name }) => name === "calling_window")?.detail.localTime ?? {});

function span(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds % length === 0 && !(unit === "d" && seconds === length)) return `${seconds / length} ${unit}`;
  }
  return `${seconds} s`;
}

function days(given) {
  const runs = [];
  for (const day of given) {
    const run = runs.at(-1);
    if (run && day === run.at(-1) + 1) run.push(day);
    else runs.push([day]);
  }
  return runs.map((run) => run.length > 1 ? `${DAYS[run[0]]}–${DAYS[run.at(-1)]}` : DAYS[run[0]]).join(", ");
}

/** What each gate saw, as lines of text. */
const SAW = {
  workspace: ({ disabled }) => [disabled ? "unknown or disabled" : "not disabled"],
  destination: ({ country, type }) => [
    country ? "a country that this workspace may not call" : type ? `a ${type}` : "a country and a kind of number that may be called"],
  policy: ({ purpose, version, missing }) => [
    missing ? `there is no policy ${purpose}` : version === null ? "none: it restricts nothing" : `${purpose}, version ${version}`],
  consent: ({ required, given }) => [
    given ? `${given.basis}, of ${given.obtainedAt}${given.reference ? `, ${given.reference}` : ""}` : required ? "required, and not given" : "not required"],
  suppression: ({ readAt, scope, reason, since, until }) => [
    ...(scope ? [`suppressed for ${scope}${reason ? `: “${reason}”` : ""}`, `since ${when(since, [])}${until ? `, until ${when(until, [])}` : ""}`] : ["none"]),
    `read at ${clock(Date.parse(readAt))}`],
  scheduled_at: ({ scheduledAt }, zones) => [`${when(scheduledAt, zones)}`],
  calling_window: ({ windows, zonesFrom, tzVersion, localTime, openUntil, opensAt, policy }) => localTime
    ? [
      windows.map((window) => `${days(window.days)} ${window.start}–${window.end}`).join("; ") || "any hour, but on holidays",
      `now ${localTimes(localTime)}`,
      opensAt ? `opens ${localTimes(opensAt)}` : openUntil ? `open until ${localTimes(openUntil)}` : "closed, no opening is known",
      `${SOURCES[zonesFrom] ?? zonesFrom}; zone data ${tzVersion}`,
    ]
    : [`policy ${policy} has hours, and the callee’s time zone is not known`],
  frequency: ({ caps, minGapSeconds, lastRingAt }, zones) => [
    ...caps.map(({ count, seconds, rings }) => `${rings} of ${count} rings in ${span(seconds)}`),
    ...(minGapSeconds ? [`at least ${span(minGapSeconds)} between two`] : []),
    lastRingAt ? `the last ${when(lastRingAt, zones)}` : "never rung before",
  ],
  paused: (_, zones, passed) => [passed ? "dialling goes on" : "an operator has paused dialling"],
  trunk: (_, zones, passed) => [passed ? "in use" : "stopped after faults"],
  slot: ({ free, callsWait }) => [callsWait ? "other calls wait for one" : free ? `${free} free` : "none is free"],
};

/** The gates in their order. zones: of the callee, where the gates do not name them. */
export function gateList(gates, zones) {
  const known = zonesOf(gates);
  const callee = known.length ? known : zones;
  return h("ol", { class: "gates" }, gates.map(({ name, passed, detail }) => {
    const lines = SAW[name]?.(detail, callee, passed) ?? [JSON.stringify(detail)];
    return h("li", { data: { passed } },
      h("span", { class: "mark", "aria-hidden": "true" }, passed ? "✓" : "✕"),
      h("span", { class: "name" }, name.replaceAll("_", " "), h("span", { class: "unseen" }, passed ? " passed" : " not passed")),
      h("span", { class: "saw" }, lines.map((line) => h("span", {}, line))));
  }));
}

/** Why a call waits and from when on it may ring, in the callee's time. subject: of the first sentence. */
export function waiting({ waitingFor, earliestRingAt }, zones, subject = "It") {
  const why = `${subject} ${waitsFor({ waitingFor })}.`;
  if (!earliestRingAt) return why;
  const left = duration(Date.parse(earliestRingAt) - Date.now());
  return `${why} It may ring in ${left}, from ${when(earliestRingAt, zones)}.`;
}
