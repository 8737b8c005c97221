// Places and reads a call with the types of openapi-typescript, and reads a webhook that it is given.
import createClient from "openapi-fetch";
import type { components, operations, paths } from "./api.js";

declare const process: { env: { API_URL: string; API_KEY: string; EVENT: string } };

type Schemas = components["schemas"];
type Ended = operations["onCallEnded"]["requestBody"]["content"]["application/json"];

const api = createClient<paths>({
  baseUrl: process.env.API_URL,
  headers: { "x-api-key": process.env.API_KEY },
});
const header = { "x-workspace-id": "demo" };

// Only what is required, and objects with any members: each is a type error where the page says too little.
const smallest: Schemas["CallRequest"] = { to: "+12025550123", call_agent_id: "agent-1" };
const request: Schemas["CallRequest"] = {
  ...smallest,
  callback_url: "",
  metadata: { orderId: "order-7", tags: ["reminder", 2], customer: { vip: false } },
  dynamic_variables: { firstName: "Ada", openInvoices: 2, balance: 129.5, isMember: true, nickname: null },
};
const report: Schemas["Report"] = { type: "agent.summary", data: { text: "Ada will come.", kept: true } };

const placed = await api.POST("/v1/api/call", { params: { header }, body: request });
if (placed.error) throw new Error(placed.error.message);
const path = { callId: placed.data.callId };
const read = await api.GET("/v1/api/call/{callId}", { params: { header, path } });
if (read.error) throw new Error(read.error.message);
const call: Schemas["Call"] = read.data;
const list = await api.GET("/v1/api/call", { params: { header, query: { limit: 1 } } });
const none = await api.GET("/v1/api/call/{callId}", { params: { header, path: { callId: "0".repeat(24) } } });
const refusal: Schemas["Error"] | Schemas["GatewayError"] | undefined = none.error;
const refused = await api.POST("/v1/api/call", { params: { header }, body: { ...smallest, to: "+1" } });

const event: Schemas["WebhookEvent"] = JSON.parse(process.env.EVENT);
const told = (ended: Ended): string => `${ended.type} ${ended.data.endedAt} ${ended.data.endReason}`;

console.log(
  JSON.stringify({
    status: call.status,
    waiting: [call.waitingFor, call.earliestRingAt],
    events: call.events.map((entry) => entry.type),
    order: call.metadata?.["orderId"],
    variables: call.dynamicVariables,
    listed: list.data?.calls.map((entry) => entry.callId === call.callId),
    missing: refusal && "code" in refusal ? refusal.code : undefined,
    refused: refused.error && "code" in refused.error ? refused.error.errors?.map((entry) => entry.field) : undefined,
    event: [event.type, event.sequence, event.data.endReason, event.metadata],
    report: report.data,
  }),
);
export { told };
