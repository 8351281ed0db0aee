"""Suffixes of the files that are read as images and videos. Free of torch, for checks before it is imported."""

# of every format that the decoder reads: JPEG, MPO, PNG, WebP, AVIF, JPEG 2000, BMP, TIFF, GIF, PPM, TGA, PCX, ICO, NumPy
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".icb", ".ico", ".j2c", ".j2k", ".jfif", ".jif", ".jp2",
    ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".npy", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm",
    ".ppm", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp",
})  # fmt: skip
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv"})
# of files that lie next to images and are none; the content decides about others
OTHER_SUFFIXES = frozenset({
    ".7z", ".arrow", ".bak", ".cache", ".cfg", ".csv", ".data", ".db", ".doc", ".docx", ".gz", ".h5", ".htm", ".html",
    ".index", ".ini", ".ipynb", ".json", ".jsonl", ".lnk", ".lock", ".log", ".manifest", ".mat", ".md", ".md5",
    ".names", ".ndjson", ".npz", ".parquet", ".part", ".pbtxt", ".pdf", ".pickle", ".pkl", ".pt", ".pth", ".py",
    ".rar", ".record", ".rst", ".sh", ".sha256", ".tar", ".tfrecord", ".tgz", ".tmp", ".toml", ".tsv", ".txt", ".url",
    ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip",
})  # fmt: skip
