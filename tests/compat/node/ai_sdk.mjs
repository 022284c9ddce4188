// Vercel's AI SDK with its providers for OpenAI-compatible servers, OpenAI (responses) and Anthropic (messages).
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { error, getWeather, PICTURE, QUESTION, usage } from "./at.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

const compatible = (at) =>
  createOpenAICompatible({
    name: "tollgate",
    baseURL: at.v1,
    apiKey: at.apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
const openai = (at) => createOpenAI({ baseURL: at.v1, apiKey: at.apiKey });
const anthropic = (at) => createAnthropic({ baseURL: at.v1, apiKey: at.apiKey });
const Weather = z.object({ city: z.string(), degrees: z.number().int() });
const asked = { prompt: QUESTION, maxOutputTokens: 16, temperature: 0 };
const used = (told) => usage(told.inputTokens, told.outputTokens, told.cachedInputTokens);

function weatherTool(calls) {
  return tool({
    description: "The weather in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async (args) => {
      calls.push({ name: "get_weather", arguments: args });
      return getWeather(args);
    },
  });
}

async function plain(model) {
  const answer = await generateText({ model, ...asked });
  return {
    text: answer.text,
    finish: answer.finishReason,
    usage: used(answer.usage),
    request_id: answer.response.headers["x-request-id"],
  };
}

async function streamed(model) {
  const answer = streamText({ model, ...asked, onError: () => {} });
  let text = "";
  for await (const piece of answer.textStream) text += piece;
  return {
    text,
    finish: await answer.finishReason,
    usage: used(await answer.usage),
    request_id: (await answer.response).headers["x-request-id"],
  };
}

async function called(model, ask) {
  const calls = [];
  const options = { model, prompt: QUESTION, tools: { get_weather: weatherTool(calls) }, stopWhen: stepCountIs(3) };
  const answer = await ask(options);
  return { calls, text: await answer.text };
}

async function broke(model) {
  let text = "";
  let failed = null;
  const answer = streamText({ model, prompt: QUESTION, maxRetries: 0, onError: () => {} });
  for await (const part of answer.fullStream) {
    if (part.type === "text-delta") text += part.text;
    if (part.type === "error") failed = part.error;
  }
  const said = failed?.message ?? failed?.error?.message ?? (failed && JSON.stringify(failed));
  return { text, error: failed && { message: said } };
}

async function thought(model) {
  const answer = await generateText({ model, prompt: QUESTION });
  return {
    reasoning: answer.reasoningText,
    text: answer.text,
    usage: { reasoning: answer.usage.outputTokenDetails.reasoningTokens ?? null },
  };
}

async function seen(model) {
  const content = [
    { type: "text", text: QUESTION },
    { type: "image", image: PICTURE, mediaType: "image/png" },
  ];
  return { text: (await generateText({ model, messages: [{ role: "user", content }] })).text };
}

async function filledIn(model) {
  const output = Output.object({ schema: Weather });
  return { parsed: (await generateText({ model, prompt: QUESTION, output })).output };
}

export async function chat(at) {
  return plain(compatible(at)(at.model));
}

export async function chat_stream(at) {
  return streamed(compatible(at)(at.model));
}

export async function tools(at) {
  return called(compatible(at)(at.model), generateText);
}

export async function tools_stream(at) {
  return called(compatible(at)(at.model), streamText);
}

export async function structured(at) {
  return filledIn(compatible(at)(at.model));
}

export async function reasoning(at) {
  return thought(compatible(at)(at.model));
}

export async function pictures(at) {
  return seen(compatible(at)(at.model));
}

export async function completions(at) {
  return plain(compatible(at).completionModel(at.model));
}

export async function embeddings(at) {
  const model = compatible(at).embeddingModel(at.model);
  const answer = await embedMany({ model, values: ["one", "two and three"] });
  return { vectors: answer.embeddings, usage: usage(answer.usage.tokens, 0) };
}

export async function responses(at) {
  return plain(openai(at)(at.model));
}

export async function responses_stream(at) {
  return streamed(openai(at)(at.model));
}

export async function responses_tools(at) {
  return called(openai(at)(at.model), streamText);
}

export async function responses_structured(at) {
  return filledIn(openai(at)(at.model));
}

export async function responses_pictures(at) {
  return seen(openai(at)(at.model));
}

export async function responses_broken(at) {
  return broke(openai(at)(at.model));
}

export async function messages(at) {
  return plain(anthropic(at)(at.model));
}

export async function messages_stream(at) {
  return streamed(anthropic(at)(at.model));
}

export async function messages_tools(at) {
  return called(anthropic(at)(at.model), streamText);
}

export async function messages_reasoning(at) {
  return thought(anthropic(at)(at.model));
}

export async function messages_pictures(at) {
  return seen(anthropic(at)(at.model));
}

export async function messages_structured(at) {
  return filledIn(anthropic(at)(at.model));
}

export async function messages_broken(at) {
  return broke(anthropic(at)(at.model));
}

export async function refused(at) {
  try {
    await generateText({ model: compatible(at)(at.model), prompt: QUESTION, maxRetries: 0 });
  } catch (raised) {
    return { error: error(raised), request_id: raised.responseHeaders?.["x-request-id"] };
  }
  return { error: null };
}

export async function retried(at) {
  return { text: (await generateText({ model: compatible(at)(at.model), prompt: QUESTION })).text };
}

export async function broken(at) {
  return broke(compatible(at)(at.model));
}

export async function timeout(at) {
  const abortSignal = AbortSignal.timeout(500);
  try {
    await generateText({ model: compatible(at)(at.model), prompt: QUESTION, maxRetries: 0, abortSignal });
  } catch (raised) {
    return { error: error(raised) };
  }
  return { error: null };
}

export async function cancelled(at) {
  const leaving = new AbortController();
  const model = compatible(at)(at.model);
  const answer = streamText({ model, prompt: QUESTION, abortSignal: leaving.signal, onError: () => {} });
  let text = "";
  for await (const piece of answer.textStream) {
    text += piece;
    if (text.length > 15) leaving.abort();
  }
  return { text };
}
