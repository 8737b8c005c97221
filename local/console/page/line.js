// The line of each workspace: its slots, what stops it, and the calls that wait, the next one first.
import { count, duration, h, keep, send } from "./dom.js";

// With more slots than this, a developer's calls find one free.
const FEW_SLOTS = 5;

let lines = [];

/** Offers to make the trunk refuse every call, if LiveKit is the stand-in. */
export async function setUpLine(setup) {
  setInterval(tick, 100);
  if (!setup.standIn) return;
  const box = document.getElementById("refuses");
  const { status, body } = await send("GET", "trunk");
  if (status !== 200) return;
  box.checked = body.refuses;
  document.getElementById("password").hidden = false;
  box.addEventListener("change", async () => {
    const wanted = box.checked;
    const answer = await send("PUT", "trunk", { refuses: wanted }).catch(() => ({ status: 0 }));
    if (answer.status !== 200) box.checked = !wanted;
  });
}

/** Shows the lines; `chosen` is the id of the call that the page shows, or null. */
export function showLines(now, chosen) {
  lines = now ?? lines;
  const waiting = lines.reduce((sum, line) => sum + line.waiting, 0);
  document.getElementById("line-count").textContent = waiting ? `${count(waiting)} wait` : "";
  const box = document.getElementById("lines");
  keep(box, lines.map(({ workspaceId }) => workspaceId), (id) => id, section);
  lines.forEach((line, place) => fill(box.children[place], line, chosen));
  tick();
}

/** The parts of a workspace's line that stay when its content changes. */
function section(workspaceId) {
  return h("section", { class: "line-of", "aria-label": `Line of ${workspaceId}` },
    h("div", { class: "bar" }, h("span", { class: "mono" }, workspaceId), h("span", { class: "quiet slots" })),
    h("div", { class: "meter", "aria-hidden": "true" }),
    h("p", { class: "notice trunk", hidden: true }),
    h("p", { class: "notice pause", hidden: true },
      "Dialling is paused: ", h("code", {}, ".venv/bin/admin --local switch resume")),
    h("div", { class: "waiting-box", hidden: true },
      h("table", { class: "waiting" },
        h("thead", {}, h("tr", {}, h("th", {}), h("th", { scope: "col" }, "call to"), h("th", { scope: "col" }, "waits for"), h("th", { scope: "col" }, "since"))),
        h("tbody", {}))),
    h("p", { class: "help" }));
}

function fill(part, line, chosen) {
  const { slots, slotsTaken, calls, waiting } = line;
  part.querySelector(".slots").textContent = `${count(slotsTaken)} of ${count(slots)} slots taken`;
  part.querySelector(".meter").replaceChildren(meter(slots ? slotsTaken / slots : 0));
  part.querySelector(".pause").hidden = line.pausedAt === null;
  const table = part.querySelector(".waiting-box");
  table.hidden = !waiting;
  if (waiting > 0) table.tabIndex = 0;
  const rows = calls.map((call, place) => ({ ...call, place: place + 1, chosen: call.callId === chosen }));
  keep(table.querySelector("tbody"), rows, ({ callId }) => callId, row);
  const more = waiting > calls.length ? `and ${count(waiting - calls.length)} more` : "";
  const few = ["To see some, leave two slots and place ten calls: ",
    h("code", {}, `.venv/bin/admin --local workspace update ${line.workspaceId} --max-concurrent-calls 2`)];
  part.querySelector(".help").replaceChildren(...(waiting ? [more] : ["No call waits. ", ...(slots > FEW_SLOTS ? few : [])]));
}

function meter(share) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  bar.setAttribute("height", "6");
  bar.setAttribute("width", `${Math.min(1, share) * 100}%`);
  svg.append(bar);
  return svg;
}

function row({ callId, to, waitingFor, earliestRingAt, since, place, chosen }) {
  return h("tr", {},
    h("td", { class: "quiet" }, count(place)),
    h("td", {}, h("a", { class: "mono", href: `#/calls/${callId}`, "aria-current": chosen ? "true" : null }, to)),
    h("td", { data: { why: waitingFor } }, waitingFor.replaceAll("_", " "),
      earliestRingAt ? h("span", { class: "quiet", data: { until: Date.parse(earliestRingAt) } }) : null),
    h("td", { data: { since } }));
}

/** Updates what changes with time alone. */
function tick() {
  const now = Date.now();
  const box = document.getElementById("lines");
  for (const cell of box.querySelectorAll("[data-since]")) cell.textContent = duration(now - cell.dataset.since);
  for (const cell of box.querySelectorAll("[data-until]")) cell.textContent = ` in ${duration(cell.dataset.until - now)}`;
  lines.forEach(({ trunk }, place) => {
    const told = box.children[place]?.querySelector(".trunk");
    if (!told) return;
    const text = trunkText(trunk, now);
    told.hidden = !text;
    told.classList.toggle("bad", trunk.stops > 0);
    if (told.textContent !== text) told.textContent = text;
  });
}

function trunkText({ id, faults, stops, stoppedUntil, probeUntil, fault }, now) {
  if (!stops) return faults ? `Trunk ${id}: ${faults} refused ${faults === 1 ? "call" : "calls"} in a row; three stop it.` : "";
  const why = fault ? ` Its last fault: ${fault}` : "";
  if (now < stoppedUntil) return `Trunk ${id} is stopped for ${duration(stoppedUntil - now)}, for the ${nth(stops)} time in a row.${why}`;
  return `Trunk ${id} was stopped; ${now < probeUntil ? "one call tries it" : "the next call tries it"}.${why}`;
}

const nth = (number) => ["first", "second", "third"][number - 1] ?? `${number}th`;
