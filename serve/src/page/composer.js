// The question field: the question, the media that are attached to it, and what is wrong with them.

import { byId, make } from './dom.js';
import { Medium, mediumCard } from './media.js';

/** Height of the question field beyond which it scrolls, in pixels. */
const MAX_HEIGHT = 220;

/** The attached media, in order. */
let attached = [];
let onKeyNeeded = () => {};

/** Attaches files that are videos or images, and asks the server for their frames. */
export async function attach(files) {
  notice('');
  // A list of files empties when its event has ended.
  for (const file of [...files]) {
    const medium = await Medium.fromFile(file);
    if (medium) add(medium).look();
    else notice(`${file.name} is neither a video nor an image`);
  }
  byId('question').focus();
}

function add(medium) {
  attached.push(medium);
  medium.onChange = () => {
    if (medium.error?.status === 401) onKeyNeeded();
    showAttached();
  };
  return medium;
}

function showAttached() {
  byId('attached').replaceChildren(
    ...attached.map((medium) => {
      const remove = () => {
        attached = attached.filter((other) => other !== medium);
        medium.close();
        showAttached();
        byId('question').focus();
      };
      return make('li', {}, mediumCard(medium, remove));
    }),
  );
}

/** Shows a message above the question field; an empty text removes it. */
export function notice(text) {
  byId('notice').textContent = text;
  byId('notice').hidden = !text;
}

/** Takes the question and its media out of the field: `{question, media}`, or null if there is no question. */
export function take() {
  const question = byId('question').value.trim();
  notice(!question && attached.length > 0 ? 'Type a question about the attached media.' : '');
  if (!question) return null;
  const media = attached;
  attached = [];
  show('');
  return { question, media };
}

/** Puts a question and its media into the field. */
export function restore(question, media) {
  for (const medium of media) add(medium).settingsChanged();
  show(question);
  byId('question').focus();
}

function show(question) {
  byId('question').value = question;
  showAttached();
  fit();
}

/** Makes the question field as high as its text. */
function fit() {
  const field = byId('question');
  field.style.height = 'auto';
  field.style.height = `${Math.min(field.scrollHeight, MAX_HEIGHT)}px`;
  field.style.overflowY = field.scrollHeight > MAX_HEIGHT ? 'auto' : 'hidden';
}

/** Asks the server again for the frames of attached media whose settings have changed; `all`: of all of them. */
export function lookAgain(all) {
  for (const medium of attached) {
    if (all) medium.look();
    else medium.settingsChanged();
  }
}

/** Whether a medium is attached to the next question. */
export const isAttached = (medium) => attached.includes(medium);

/** Shows Stop in place of Send while an answer streams. The focus does not stay on the button that is hidden. */
export function showRunning(isRunning) {
  const [shown, gone] = isRunning ? [byId('stop'), byId('send')] : [byId('send'), byId('stop')];
  const hadFocus = document.activeElement === gone;
  shown.hidden = false;
  gone.hidden = true;
  if (hadFocus) (isRunning ? shown : byId('question')).focus();
}

/** Connects the question field. */
export function connectComposer({ send, stop, needKey }) {
  const on = (id, event, handler) => byId(id).addEventListener(event, handler);
  onKeyNeeded = needKey;
  on('composer', 'submit', (event) => {
    event.preventDefault();
    send();
  });
  on('question', 'input', fit);
  on('question', 'keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  on('stop', 'click', stop);
  for (const id of ['choose', 'choose-first']) on(id, 'click', () => byId('file').click());
  on('file', 'change', () => {
    attach(byId('file').files);
    byId('file').value = '';
  });
  fit();
}
