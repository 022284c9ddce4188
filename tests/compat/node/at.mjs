// The words in which every client's program says what its client understood; the Python programs have `at.py`.
export const QUESTION = "How warm is it in Paris?";

// A PNG of one pixel, in base64.
export const PICTURE =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";

export const WEATHER_SCHEMA = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};

export const getWeather = ({ city }) => `It is 21 degrees in ${city}.`;

// Tokens as the client tells them to its user; null where it does not tell.
export const usage = (input, output, cached = null) => ({ input, output, cached: cached ?? null });

// An exception of the client, with what it knows of the answer.
export const error = (raised) => ({
  class: raised.constructor.name,
  status: raised.status ?? raised.statusCode ?? null,
  code: raised.code ?? raised.data?.error?.code ?? null,
  message: raised.message,
});
