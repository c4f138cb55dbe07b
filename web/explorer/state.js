// What the visitor has chosen, and what the models answered.

/** Everything that the page shows follows from these values. */
export const state = {
  model: null, // an entry of models.json
  picture: null, // {label, bitmap}
  image: null, // its pixels at the size of the model
  order: [], // patches in random order: those that come first are hidden first
  hidden: [], // true for each hidden patch
  chosen: 0, // a patch, or the number of patches for the class token
  pointed: null, // the patch under the pointer or the focus, or null
  view: "prediction", // what the second board shows
  result: null, // the model's outputs, and the visible patches that they belong to
  classifies: false, // whether the classifier has been asked for
};

/** The two pictures, `input` and `output`, each a `PatchGrid`. */
export const boards = {};

export const find = (id) => document.getElementById(id);

/** Return the number of patches, which is also the index of the class token. */
export const patches = () => state.model.side ** 2;

/** Return the indices of the visible patches, in reading order. */
export const visible = () =>
  state.order.filter((index) => !state.hidden[index]).sort((a, b) => a - b);
