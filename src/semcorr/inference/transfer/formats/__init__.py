"""The file formats of annotation tools: one file each, with a reader of annotations and a writer of labels."""
