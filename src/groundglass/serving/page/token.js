// Asks for the service's token. It goes to the API's object and nowhere else.

import { byId } from "./dom.js";

/**
 * Opens the dialog until a token is entered or it is closed.
 * @param {import("./api.js").Api} api
 * @param {boolean} refused whether one was tried in vain.
 * @returns {Promise<boolean>} whether one was entered.
 */
export function askForToken(api, refused) {
  const [dialog, form, input, error] = ["token-dialog", "token-form", "token", "token-error"].map(byId);
  error.textContent = refused ? "The service did not accept this token." : "";
  if (dialog.open) return Promise.resolve(false);
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    let entered = false;
    form.onsubmit = (event) => {
      event.preventDefault();
      // A header holds no line breaks and nothing beyond Latin-1; such a token is none.
      api.token = input.value.trim().replace(/[^\x21-\x7e]/g, "?");
      input.value = "";
      entered = true;
      dialog.close();
    };
    dialog.onclose = () => {
      input.value = "";
      resolve(entered);
    };
  });
}
