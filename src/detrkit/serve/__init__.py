"""A detector behind HTTP: photos in, objects or the page of `explain` out."""
