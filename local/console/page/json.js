// JSON with indentation and colours. The text is not parsed and serialized again: 1.0 stays 1.0.
import { h } from "./dom.js";

const TOKEN = /"(?:\\.|[^"\\])*"|[{}[\],:]|[^\s"{}[\],:]+/g;

/** Nodes that show a JSON text; a text that is not JSON is shown unchanged. */
export function jsonNodes(text) {
  try {
    JSON.parse(text);
  } catch {
    return [text];
  }
  const tokens = text.match(TOKEN) ?? [];
  const nodes = [];
  let depth = 0;
  const line = () => "\n" + "  ".repeat(depth);
  tokens.forEach((token, place) => {
    const next = tokens[place + 1];
    if (token === "{" || token === "[") {
      nodes.push(token);
      if (next !== "}" && next !== "]") depth += 1, nodes.push(line());
    } else if (token === "}" || token === "]") {
      const empty = tokens[place - 1] === "{" || tokens[place - 1] === "[";
      if (!empty) depth -= 1, nodes.push(line());
      nodes.push(token);
    } else if (token === ",") {
      nodes.push(token, line());
    } else if (token === ":") {
      nodes.push(": ");
    } else {
      const kind = next === ":" ? "key" : token[0] === '"' ? "text" : "value";
      nodes.push(h("span", { class: `json-${kind}` }, token));
    }
  });
  return nodes;
}

/** A box that shows a JSON text, reachable by keyboard because it may scroll. */
export function jsonBox(text, label) {
  return h("pre", { class: "code", tabindex: "0", role: "region", "aria-label": label }, jsonNodes(text));
}
