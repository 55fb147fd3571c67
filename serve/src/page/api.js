// Requests to the server: its model, previews, and streamed chat completions.

const KEY = 'reel.api-key';

/** An error that the server or the network has answered with. */
export class ApiError extends Error {
  constructor(message, { status = null, param = null, code = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code });
  }

  static from(status, text) {
    try {
      const { error } = JSON.parse(text);
      if (typeof error?.message === 'string') return new ApiError(error.message, { ...error, status });
    } catch {
      // Not JSON: the answer of a proxy, for example.
    }
    return new ApiError(`the server has answered with status ${status}: ${text.slice(0, 300)}`, { status });
  }
}

/** The address of a path of the API; the page may be served below a prefix. */
export const address = (path) => new URL(path, document.baseURI).href;

/** The API key of this browser session, or an empty text. */
export const apiKey = () => sessionStorage.getItem(KEY) ?? '';

/** Sets the API key of this browser session; an empty text removes it. */
export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  // A header can carry printable ASCII only; another key cannot be right.
  if (apiKey()) headers.Authorization = `Bearer ${apiKey().replace(/[^\x20-\x7e]/g, '?')}`;
  let response;
  try {
    response = await fetch(address(path), { ...options, headers, cache: 'no-store' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('the server cannot be reached; check that `reel serve` still runs');
  }
  if (!response.ok) throw ApiError.from(response.status, await response.text());
  return response;
}

async function post(path, body, signal) {
  const text = JSON.stringify(body);
  await checkSize(text.length);
  return request(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: text, signal });
}

let limits;

/** Refuses a request that is larger than the server accepts. The text is mostly base64, a byte a character. */
async function checkSize(size) {
  limits ??= await (await request('page/limits.json')).json();
  if (size > limits.max_body_bytes) {
    const mib = (count) => (count / (1 << 20)).toFixed(1);
    throw new ApiError(
      `the request has ${mib(size)} MiB with its media, and the server takes ${mib(limits.max_body_bytes)} MiB; ` +
        'take shorter or smaller media, or start the server with a larger --max-body',
    );
  }
}

/** The model that the server answers with: `{id, max_model_len}`. */
export async function model() {
  return (await (await request('v1/models')).json()).data[0];
}

/** Whether the server takes requests now. */
export async function isReady() {
  try {
    await request('ready');
    return true;
  } catch {
    return false;
  }
}

/** What the model sees of a request; see `POST /v1/preview`. */
export async function preview(body, signal) {
  return (await post('v1/preview', body, signal)).json();
}

/** Streams a chat completion. Calls `onText(piece)` for each piece of text. Returns `{finish, usage}`. */
export async function chat(body, onText, signal) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await post('v1/chat/completions', streamed, signal);
  let finish = null;
  let usage = null;
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return { finish, usage };
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, chunk.error);
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) onText(choice.delta.content);
    finish = choice?.finish_reason ?? finish;
    usage = chunk.usage ?? usage;
  }
  throw new ApiError('the connection ended before the answer was complete');
}

/** The data of server-sent events. */
async function* events(stream) {
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const whole = rest.split(/\r?\n\r?\n/);
      rest = whole.pop();
      for (const event of whole) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith('data:'));
        if (lines.length > 0) yield lines.map((line) => line.slice(5).trimStart()).join('\n');
      }
    }
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('the connection ended before the answer was complete');
  } finally {
    reader.cancel().catch(() => {});
  }
}
