// Builds the body of a chat request from a conversation, and the same request as a curl command.

import { address, apiKey } from './api.js';

/** Whether an exchange is part of the conversation: one that failed without any text is not. */
export const counts = (exchange) => !(exchange.answer.status === 'failed' && !exchange.answer.text);

/** The content part of a medium with this `data:` URI. */
export function mediaPart(medium, url) {
  const type = medium.kind === 'video' ? 'video_url' : 'image_url';
  return { type, [type]: { url }, ...medium.keys };
}

/** The body of the request that asks the question of exchange `index`. `urlOf(medium)` returns the URI of a medium.
 * Earlier answers are part of it as the model has written them. */
export async function chatBody(conversation, index, urlOf) {
  const asked = conversation.exchanges[index];
  const messages = asked.system ? [{ role: 'system', content: asked.system }] : [];
  for (const [i, exchange] of conversation.exchanges.slice(0, index + 1).entries()) {
    if (i < index && !counts(exchange)) continue;
    const parts = [];
    for (const medium of exchange.media) parts.push(mediaPart(medium, await urlOf(medium)));
    const content = parts.length > 0 ? [...parts, { type: 'text', text: exchange.question }] : exchange.question;
    messages.push({ role: 'user', content });
    if (i < index) messages.push({ role: 'assistant', content: exchange.answer.text });
  }
  return { model: conversation.model, messages, ...asked.fields };
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The request of exchange `index` as a shell command. It reads media from files of their names in the current
 * folder, and the API key from the variable REEL_API_KEY. */
export async function curl(conversation, index) {
  const media = [];
  const marker = (i) => `@@medium ${i}@@`;
  const body = await chatBody(conversation, index, async (medium) => marker(media.push(medium) - 1));
  const key = apiKey() ? ' \\\n  -H "Authorization: Bearer $REEL_API_KEY"' : '';
  const url = quoted(address('v1/chat/completions'));
  const command = `curl ${url}${key} \\\n  -H 'Content-Type: application/json' --data-binary @-`;
  const json = JSON.stringify(body, null, 2);
  if (media.length === 0) return `${command} <<'JSON'\n${json}\nJSON\n`;
  // The shell replaces $(…) in this text, so its own special characters are escaped.
  let text = json.replace(/[\\$`]/g, '\\$&');
  media.forEach((medium, i) => {
    const read = `$(base64 < ${quoted(medium.name)} | tr -d '\\n')`;
    text = text.replace(marker(i), () => `data:${medium.type};base64,${read}`);
  });
  return `${command} <<JSON\n${text}\nJSON\n`;
}
