// Keeps conversations and their media in the browser's IndexedDB. Without it (some private windows) they last as long
// as the page.
//
// The files of media take at most MAX_MEDIA_BYTES; beyond that those of the conversations that were used the longest
// ago are dropped. Their frames and texts stay.

const MAX_MEDIA_BYTES = 256 * (1 << 20);

let database = null;
const memory = { conversations: new Map(), media: new Map() };

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Opens the store. Returns whether what it holds stays after the page is closed. */
export async function open() {
  try {
    const request = indexedDB.open('reel', 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('conversations', { keyPath: 'id' });
      request.result.createObjectStore('media', { keyPath: 'id' });
    };
    database = await result(request);
    return true;
  } catch {
    return false;
  }
}

const table = (name, mode) => database.transaction(name, mode).objectStore(name);

async function put(name, record) {
  if (!database) return void memory[name].set(record.id, record);
  await result(table(name, 'readwrite').put(record));
}

async function all(name) {
  return database ? result(table(name, 'readonly').getAll()) : [...memory[name].values()];
}

async function remove(name, id) {
  if (!database) return void memory[name].delete(id);
  await result(table(name, 'readwrite').delete(id));
}

/** All conversations, the newest first. */
export async function conversations() {
  return (await all('conversations')).sort((a, b) => b.updated - a.updated);
}

/** Stores a conversation, in place of its earlier version. */
export const saveConversation = (conversation) => put('conversations', structuredClone(conversation));

/** Removes a conversation with its media. */
export async function removeConversation(conversation) {
  await remove('conversations', conversation.id);
  for (const { media } of conversation.exchanges) for (const { id } of media) await remove('media', id);
}

/** Removes a medium. */
export const removeMedium = (id) => remove('media', id);

/** Removes everything. */
export async function clear() {
  for (const name of ['conversations', 'media']) {
    memory[name].clear();
    if (database) await result(table(name, 'readwrite').clear());
  }
}

/** Stores a medium: `{id, blob, preview}`. */
export async function saveMedium({ id, blob, preview }) {
  await put('media', { id, blob, preview, saved: Date.now() });
  await dropOldFiles();
}

/** The stored `{blob, preview}` of a medium. `blob` is null if its file was dropped; null if the medium is unknown. */
export async function medium(id) {
  if (!database) return memory.media.get(id) ?? null;
  return (await result(table('media', 'readonly').get(id))) ?? null;
}

async function dropOldFiles() {
  const used = new Map();
  for (const { exchanges, updated } of await all('conversations')) {
    for (const { media } of exchanges) for (const { id } of media) used.set(id, updated);
  }
  const media = (await all('media')).filter(({ blob }) => blob);
  media.sort((a, b) => (used.get(b.id) ?? b.saved) - (used.get(a.id) ?? a.saved));
  let bytes = 0;
  for (const record of media) {
    bytes += record.blob.size;
    if (bytes > MAX_MEDIA_BYTES) await put('media', { ...record, blob: null });
  }
}
