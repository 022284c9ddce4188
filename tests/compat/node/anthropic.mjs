// The Anthropic SDK for TypeScript: messages, their streams and tools, counting, and how its exceptions come out.
import Anthropic from "@anthropic-ai/sdk";
import { error, getWeather, QUESTION, usage, WEATHER_SCHEMA } from "./at.mjs";

const conversation = [{ role: "user", content: QUESTION }];
const tool = { name: "get_weather", description: "The weather in a city.", input_schema: WEATHER_SCHEMA };

const client = (at, options = {}) => new Anthropic({ baseURL: at.baseUrl, apiKey: at.apiKey, ...options });
const textOf = (message) => message.content.map((block) => block.text ?? "").join("");
// Anthropic's input_tokens are those that did not come from the cache.
const ofMessage = (told) => {
  const cached = told.cache_read_input_tokens ?? 0;
  return usage(told.input_tokens + cached + (told.cache_creation_input_tokens ?? 0), told.output_tokens, cached);
};

async function create(at, more = {}, options = {}) {
  return client(at, options).messages.create({ model: at.model, max_tokens: 16, messages: conversation, ...more });
}

export async function messages(at) {
  const answer = await create(at, { temperature: 0 });
  return {
    text: textOf(answer),
    finish: answer.stop_reason,
    usage: ofMessage(answer.usage),
    request_id: answer._request_id,
  };
}

export async function messages_stream(at) {
  const stream = client(at).messages.stream({ model: at.model, max_tokens: 16, temperature: 0, messages: conversation });
  let delta_text = "";
  stream.on("text", (text) => (delta_text += text));
  const answer = await stream.finalMessage();
  return { text: textOf(answer), delta_text, finish: answer.stop_reason, usage: ofMessage(answer.usage) };
}

export async function messages_tools(at) {
  const it = client(at).messages;
  const asked = { model: at.model, max_tokens: 64, tools: [tool] };
  const stream = it.stream({ ...asked, messages: conversation });
  let pieces = 0;
  stream.on("inputJson", () => pieces++);
  const first = await stream.finalMessage();
  const [call] = first.content.filter((block) => block.type === "tool_use");
  const result = { type: "tool_result", tool_use_id: call.id, content: getWeather(call.input) };
  const history = [...conversation, { role: "assistant", content: first.content }, { role: "user", content: [result] }];
  const second = await it.create({ ...asked, messages: history });
  return {
    calls: [{ name: call.name, arguments: call.input }],
    finish: first.stop_reason,
    pieces,
    text: textOf(second),
  };
}

export async function messages_reasoning(at) {
  const thinking = { type: "enabled", budget_tokens: 1024 };
  const asked = { model: at.model, max_tokens: 2048, messages: conversation, thinking };
  const answer = await client(at).messages.stream(asked).finalMessage();
  const thought = answer.content.map((block) => block.thinking ?? "").join("");
  return { reasoning: thought, text: textOf(answer) };
}

export async function messages_too_long(at) {
  const long = [{ role: "user", content: "word ".repeat(6000) }];
  try {
    await client(at).messages.stream({ model: at.model, max_tokens: 16, messages: long }).finalMessage();
  } catch (raised) {
    return { error: error(raised), type: raised.type, request_id: raised.requestID ?? null };
  }
  return { error: null };
}

export async function count_tokens(at) {
  const counted = await client(at).messages.countTokens({ model: at.model, messages: conversation });
  await create(at);
  return { counted: counted.input_tokens };
}

export async function messages_broken(at) {
  let text = "";
  try {
    for await (const event of await create(at, { stream: true })) {
      if (event.type === "content_block_delta") text += event.delta.text;
    }
  } catch (raised) {
    return { text, error: error(raised) };
  }
  return { text, error: null };
}

export async function refused(at) {
  try {
    await create(at, {}, { maxRetries: 0 });
  } catch (raised) {
    return { error: error(raised), request_id: raised.requestID };
  }
  return { error: null };
}

export async function retried(at) {
  return { text: textOf(await create(at)) };
}

export async function timeout(at) {
  try {
    await create(at, {}, { maxRetries: 0, timeout: 500 });
  } catch (raised) {
    return { error: error(raised) };
  }
  return { error: null };
}

export async function cancelled(at) {
  let text = "";
  for await (const event of await create(at, { stream: true })) {
    if (event.type === "content_block_delta") text += event.delta.text;
    if (text.length > 15) break; // which ends the request
  }
  return { text };
}
