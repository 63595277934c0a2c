// The API key of this tab. It stays in sessionStorage, so that closing the tab deletes it; where
// the browser blocks the storage, it lasts as long as the page.

const PLACE = "lite-detr-api-key";
const UNUSABLE = /[^\x21-\x7e]/u; // a header cannot have it, or no key has it
const stored = read();
let used = UNUSABLE.test(stored) ? "" : stored;
if (used !== stored) write("");

/** The key that is sent with every request; empty for none. */
export function currentKey() {
  return used;
}

/** Uses this key from now on; an empty one forgets the last. */
export function keepKey(key) {
  used = key;
  write(key);
}

/** Why a text cannot be a key; empty if it can. The key itself is not part of the reason. */
export function faultOfKey(key) {
  if (key === "") return "It is empty.";
  const found = UNUSABLE.exec(key)?.[0];
  if (!found) return "";
  const place = [...key].indexOf(found) + 1;
  const code = found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  const what = found === " " ? "a space" : `U+${code}`;
  return `Its character ${place} is ${what}; keys have only printable ASCII characters, no spaces.`;
}

function read() {
  try {
    return sessionStorage.getItem(PLACE) ?? "";
  } catch {
    return ""; // the browser blocks the storage
  }
}

function write(key) {
  try {
    if (key) sessionStorage.setItem(PLACE, key);
    else sessionStorage.removeItem(PLACE);
  } catch {
    // The browser blocks the storage: the page keeps the key.
  }
}
