"""Tasks on data of one's own: finding the files, reading them, and the models that are trained on them."""
