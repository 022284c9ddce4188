// openai-node: chat, responses, embeddings and text completions, and how its exceptions come out.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { error, getWeather, QUESTION, usage, WEATHER_SCHEMA } from "./at.mjs";

const messages = [{ role: "user", content: QUESTION }];
const description = { name: "get_weather", description: "The weather in a city.", parameters: WEATHER_SCHEMA };
const tool = { type: "function", function: { ...description, strict: true } };
const responsesTool = { type: "function", ...description, strict: true };
const Weather = z.object({ city: z.string(), degrees: z.number().int() });

const client = (at, options = {}) => new OpenAI({ baseURL: at.v1, apiKey: at.apiKey, ...options });
const ofChat = (told) =>
  usage(told.prompt_tokens, told.completion_tokens, told.prompt_tokens_details?.cached_tokens);
const ofResponse = (told) => usage(told.input_tokens, told.output_tokens, told.input_tokens_details.cached_tokens);

// Chat

export async function chat(at) {
  const answer = await client(at).chat.completions.create({ model: at.model, messages, max_tokens: 16, temperature: 0 });
  const [choice] = answer.choices;
  return {
    text: choice.message.content,
    finish: choice.finish_reason,
    usage: ofChat(answer.usage),
    request_id: answer._request_id,
  };
}

export async function chat_stream(at) {
  const asked = { model: at.model, messages, max_tokens: 16, temperature: 0, stream: true };
  const { data: stream, request_id } = await client(at)
    .chat.completions.create({ ...asked, stream_options: { include_usage: true } })
    .withResponse();
  let text = "";
  let finish, told;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
    told = chunk.usage ?? told;
  }
  return { text, finish, usage: ofChat(told), request_id };
}

export async function chat_stream_helper(at) {
  const events = new Set();
  const asked = { model: at.model, messages, max_tokens: 16, temperature: 0, stream_options: { include_usage: true } };
  const stream = client(at).chat.completions.stream(asked);
  for (const name of ["connect", "chunk", "content", "message", "finalChatCompletion", "end"]) {
    stream.on(name, () => events.add(name));
  }
  const answer = await stream.finalChatCompletion();
  const [choice] = answer.choices;
  return {
    text: choice.message.content,
    finish: choice.finish_reason,
    usage: ofChat(answer.usage),
    events: [...events],
  };
}

export async function chat_choices(at) {
  const asked = { model: at.model, messages, max_tokens: 8, temperature: 0, n: 3 };
  const stream = client(at).chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
  const answer = await stream.finalChatCompletion();
  return { texts: answer.choices.map((choice) => choice.message.content), usage: ofChat(answer.usage) };
}

export async function tools(at) {
  const it = client(at);
  const first = await it.chat.completions.create({ model: at.model, messages, tools: [tool], tool_choice: "auto" });
  const { message, finish_reason: finish } = first.choices[0];
  const [call] = message.tool_calls;
  const args = JSON.parse(call.function.arguments);
  const result = { role: "tool", tool_call_id: call.id, content: getWeather(args) };
  const history = [...messages, message, result];
  const second = await it.chat.completions.create({ model: at.model, messages: history, tools: [tool] });
  return {
    calls: [{ name: call.function.name, arguments: args }],
    finish,
    text: second.choices[0].message.content,
  };
}

export async function tools_stream(at) {
  const stream = client(at).chat.completions.stream({ model: at.model, messages, tools: [tool] });
  let pieces = 0;
  stream.on("tool_calls.function.arguments.delta", () => pieces++);
  const answer = await stream.finalChatCompletion();
  const calls = answer.choices[0].message.tool_calls.map((call) => ({
    name: call.function.name,
    arguments: JSON.parse(call.function.arguments),
  }));
  return { calls, finish: answer.choices[0].finish_reason, pieces };
}

export async function structured(at) {
  const response_format = zodResponseFormat(Weather, "weather");
  const answer = await client(at).chat.completions.parse({ model: at.model, messages, response_format });
  return { parsed: answer.choices[0].message.parsed };
}

export async function refusal(at) {
  const it = client(at).chat.completions;
  const asked = { model: at.model, messages, response_format: zodResponseFormat(Weather, "weather") };
  const answer = await it.parse(asked);
  const streamed = await it.stream(asked).finalChatCompletion();
  return {
    refusal: answer.choices[0].message.refusal,
    streamed_refusal: streamed.choices[0].message.refusal,
  };
}

export async function completions(at) {
  const asked = { model: at.model, prompt: "Once upon", max_tokens: 8, temperature: 0 };
  const answer = await client(at).completions.create(asked);
  return { text: answer.choices[0].text, usage: ofChat(answer.usage), request_id: answer._request_id };
}

export async function embeddings(at) {
  const answer = await client(at).embeddings.create({ model: at.model, input: ["one", "two and three"] });
  return {
    vectors: answer.data.map((vector) => vector.embedding),
    usage: usage(answer.usage.prompt_tokens, 0),
    request_id: answer._request_id,
  };
}

export async function models(at) {
  const it = client(at);
  const listed = [];
  for await (const model of it.models.list()) listed.push(model.id);
  return { models: listed, model: (await it.models.retrieve(at.model)).id };
}

// Responses

export async function responses(at) {
  const asked = { model: at.model, input: QUESTION, max_output_tokens: 16, temperature: 0 };
  const answer = await client(at).responses.create(asked);
  return {
    text: answer.output_text,
    finish: answer.status,
    usage: ofResponse(answer.usage),
    request_id: answer._request_id,
  };
}

export async function responses_stream(at) {
  const asked = { model: at.model, input: QUESTION, max_output_tokens: 16, temperature: 0 };
  const stream = client(at).responses.stream(asked);
  const events = [];
  const numbers = [];
  let delta_text = "";
  for await (const event of stream) {
    events.push(event.type);
    numbers.push(event.sequence_number);
    if (event.type === "response.output_text.delta") delta_text += event.delta;
  }
  const answer = await stream.finalResponse();
  return {
    text: answer.output_text,
    delta_text,
    finish: answer.status,
    usage: ofResponse(answer.usage),
    events,
    numbers,
  };
}

export async function responses_stored(at) {
  const it = client(at).responses;
  const first = await it.create({ model: at.model, input: QUESTION, store: true });
  const second = await it.create({ model: at.model, input: "And in Rome?", previous_response_id: first.id });
  const again = await it.retrieve(first.id);
  await it.delete(first.id);
  const is_gone = await it.retrieve(first.id).then(() => false, (raised) => raised instanceof OpenAI.NotFoundError);
  return { text: second.output_text, again: again.output_text, is_gone };
}

export async function responses_tools(at) {
  const it = client(at);
  const stream = it.responses.stream({ model: at.model, input: QUESTION, tools: [responsesTool] });
  let pieces = 0;
  stream.on("response.function_call_arguments.delta", () => pieces++);
  const first = await stream.finalResponse();
  const [call] = first.output.filter((item) => item.type === "function_call");
  const args = JSON.parse(call.arguments);
  const input = [
    { role: "user", content: QUESTION },
    ...first.output.map(({ parsed_arguments, ...item }) => item),
    { type: "function_call_output", call_id: call.call_id, output: getWeather(args) },
  ];
  const second = await it.responses.create({ model: at.model, input, tools: [responsesTool] });
  return { calls: [{ name: call.name, arguments: args }], pieces, text: second.output_text };
}

export async function responses_structured(at) {
  const text = { format: zodTextFormat(Weather, "weather") };
  const answer = await client(at).responses.parse({ model: at.model, input: QUESTION, text });
  return { parsed: answer.output_parsed };
}

export async function responses_refusal(at) {
  const stream = client(at).responses.stream({ model: at.model, input: QUESTION });
  let refusal = "";
  stream.on("response.refusal.delta", (event) => (refusal += event.delta));
  const answer = await stream.finalResponse();
  const [part] = answer.output[0].content;
  if (part.type !== "refusal" || part.refusal !== refusal) throw new Error(`not a refusal: ${JSON.stringify(part)}`);
  return { refusal };
}

export async function responses_reasoning(at) {
  const answer = await client(at).responses.create({ model: at.model, input: QUESTION });
  const thoughts = answer.output.filter((item) => item.type === "reasoning").flatMap((item) => item.content);
  return {
    reasoning: thoughts.map((part) => part.text).join(""),
    text: answer.output_text,
    usage: { reasoning: answer.usage.output_tokens_details.reasoning_tokens },
  };
}

export async function responses_counted(at) {
  const it = client(at).responses;
  const counted = await it.inputTokens.count({ model: at.model, input: QUESTION });
  await it.create({ model: at.model, input: QUESTION, max_output_tokens: 16 });
  return { counted: counted.input_tokens };
}

export async function responses_broken(at) {
  let text = "";
  try {
    const stream = await client(at).responses.create({ model: at.model, input: QUESTION, stream: true });
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.failed") return { text, error: { message: event.response.error.message } };
    }
  } catch (raised) {
    return { text, error: error(raised) };
  }
  return { text, error: null };
}

// Failures

export async function refused(at) {
  try {
    await client(at, { maxRetries: 0 }).chat.completions.create({ model: at.model, messages, max_tokens: 16 });
  } catch (raised) {
    return { error: error(raised), request_id: raised.requestID };
  }
  return { error: null };
}

export async function retried(at) {
  const answer = await client(at).chat.completions.create({ model: at.model, messages, max_tokens: 16 });
  return { text: answer.choices[0].message.content };
}

export async function idempotent(at) {
  const options = { headers: { "Idempotency-Key": crypto.randomUUID() } };
  const answers = [];
  for (let time = 0; time < 2; time++) {
    answers.push(await client(at).chat.completions.create({ model: at.model, messages, max_tokens: 16 }, options));
  }
  return { texts: answers.map((answer) => answer.choices[0].message.content), ids: answers.map((answer) => answer.id) };
}

export async function broken(at) {
  let text = "";
  try {
    const stream = await client(at).chat.completions.create({ model: at.model, messages, stream: true });
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
  } catch (raised) {
    return { text, error: error(raised) };
  }
  return { text, error: null };
}

export async function timeout(at) {
  try {
    await client(at, { maxRetries: 0, timeout: 500 }).chat.completions.create({ model: at.model, messages });
  } catch (raised) {
    return { error: error(raised) };
  }
  return { error: null };
}

export async function cancelled(at) {
  let text = "";
  const stream = await client(at).chat.completions.create({ model: at.model, messages, stream: true });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    if (text.length > 15) break; // which ends the request
  }
  return { text };
}
