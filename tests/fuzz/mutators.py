"""Structure-aware mutation: a changed input is still JSON, XML, a tar file, a pickle, ... as often as not.

Each function takes the content of a file and a source of randomness. Without them nearly all inputs of a fuzzer end in the
parser of the format, before the code that reads the content.
"""

import io
import json
import pickletools
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from random import Random
from xml.etree import ElementTree

import yaml

from detrkit._internal.documents import parse_yaml
from tests.fuzz.trees import mutate_tree
from tests.fuzz.values import FLOATS, INTEGERS, TEXTS, leaf, to_json, tweak

Mutator = Callable[[bytes, Random], bytes]
_MAX_BYTES = 1_000_000


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """Flip, insert, delete, repeat and overwrite bytes, and numbers of 1 to 8 of them."""
    data = bytearray(content or b"\0")
    for _ in range(random.choice([1, 1, 2, 4, 16])):
        _change_bytes(data, random.randrange(len(data)), random)
        if not data:
            data = bytearray(b"\0")
    return bytes(data[:_MAX_BYTES])


def _change_bytes(data: bytearray, at: int, random: Random) -> None:
    choice = random.randrange(7)
    if choice == 0:
        data[at] ^= 1 << random.randrange(8)
    elif choice == 1:
        data[at] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)])
    elif choice == 2:
        width = random.choice([2, 4, 8])
        value = random.choice([0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, len(data)]) % 2 ** (8 * width)
        data[at : at + width] = value.to_bytes(width, random.choice(["little", "big"]))
    elif choice == 3:
        data[at:at] = random.randbytes(random.choice([1, 2, 8, 64]))
    elif choice == 4:
        del data[at : random.choice([at + 1, at + 2, at + 8, at + 64, at + 1024, len(data)])]
    elif choice == 5:
        data[at:at] = data[at : at + random.choice([1, 8, 64, 512])] * random.choice([1, 2, 20])
    else:
        data[at:at] = str(leaf(random)).encode("utf-8", "surrogatepass")[:200]


def mutate_json(content: bytes, random: Random) -> bytes:
    """Change the tree of a JSON document."""
    try:
        document = json.loads(content.decode("utf-8-sig", "surrogatepass"))
    except (ValueError, RecursionError):
        return mutate_text(content, random)
    try:
        return to_json(mutate_tree(document, random), random)
    except RecursionError:
        return content


def mutate_yaml(content: bytes, random: Random) -> bytes:
    """Change the tree of a YAML document, or its text."""
    if random.random() < 0.4:
        return mutate_text(content, random)
    try:
        document = parse_yaml(content.decode("utf-8-sig"))
        changed = mutate_tree(document, random)
        return yaml.safe_dump(changed, sort_keys=False, allow_unicode=random.random() < 0.5).encode("utf-8", "replace")
    except (ValueError, RecursionError, yaml.YAMLError, TypeError, AttributeError):
        return mutate_text(content, random)


_TOKENS = [
    b"&a", b"*a", b"<<: *a", b"!!python/object/apply:os.system [x]", b"!!binary x", b"!!set",
    b"!!timestamp 2001-01-01", b"? ", b"- ",
    b": ", b"|", b">", b"%YAML 9.9", b"---", b"...", b"#", b"\t", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\0", b"=", b",", b";",
    b"<!-- -->", b"<![CDATA[x]]>", b"<!DOCTYPE a>", b'<!ENTITY a "b">', b"&amp;", b"&#0;", b"&#x41;", b"&a;",
    b"</annotation>",
    b'<?xml version="1.0" encoding="punycode"?>', b'<?xml version="1.0" encoding="utf-16"?>', b"xmlns:a='b'", b"{",
    b"}", b"[", b"]",
]  # fmt: skip
_WORD = re.compile(rb"[\w.+-]+")


def mutate_text(content: bytes, random: Random) -> bytes:
    """Change words and lines of a text."""
    for _ in range(random.choice([1, 1, 2, 4])):
        choice = random.randrange(6)
        words = list(_WORD.finditer(content))
        if choice < 2 and words:
            word = random.choice(words)
            new = tweak(_number_or_text(word[0]), random)
            content = content[: word.start()] + str(new).encode("utf-8", "surrogatepass") + content[word.end() :]
        elif choice == 2:
            at = random.randint(0, len(content))
            content = content[:at] + random.choice(_TOKENS) + content[at:]
        elif choice == 3:
            lines = content.split(b"\n")
            at = random.randrange(len(lines))
            lines[at:at] = [lines[random.randrange(len(lines))]] * random.choice([1, 2, 50])
            content = b"\n".join(lines)
        elif choice == 4:
            lines = content.split(b"\n")
            del lines[random.randrange(len(lines))]
            content = b"\n".join(lines)
        else:
            content = mutate_bytes(content, random)
    return content[:_MAX_BYTES]


def _number_or_text(word: bytes) -> object:
    text = word.decode("utf-8", "replace")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def mutate_xml(content: bytes, random: Random) -> bytes:
    """Change elements of an XML document, or its text."""
    if random.random() < 0.2:
        return mutate_text(content, random)
    try:
        top = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError):
        return mutate_text(content, random)
    for _ in range(random.choice([1, 1, 2, 4])):
        _change_element(top, random)
    try:
        encoding = random.choice(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1", "us-ascii"])
        return ElementTree.tostring(top, encoding=encoding, xml_declaration=random.random() < 0.3)[:_MAX_BYTES]
    except (ValueError, TypeError):
        return mutate_text(content, random)


def _change_element(top: ElementTree.Element, random: Random) -> None:
    elements = list(top.iter())
    element, other = random.choice(elements), random.choice(elements)
    choice = random.randrange(9)
    if choice < 3:
        element.text = str(tweak(_number_or_text((element.text or "").encode("utf-8", "replace")), random))
    elif choice == 3:
        element.tag = other.tag
    elif choice == 4 and len(element):
        element.remove(random.choice(list(element)))
    elif choice == 5 and len(element):
        inner = random.choice(list(element))
        element.extend([inner] * random.choice([1, 1, 50]))
    elif choice == 6 and not any(one is element for one in other.iter()):
        element.append(other)
    elif choice == 7:
        names = list(element.attrib) or ["a"]
        element.set(
            random.choice(names),
            str(tweak(_number_or_text(element.get(names[0], "").encode("utf-8", "replace")), random)),
        )
    else:
        element.tail = str(leaf(random))


def mutate_png(content: bytes, random: Random) -> bytes:
    """Change a chunk of a PNG, with a correct checksum."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks or random.random() < 0.1:
        return mutate_bytes(content, random)
    index = random.randrange(len(chunks))
    name, data = chunks[index]
    if name == b"IDAT" and random.random() < 0.7:
        try:
            data = zlib.compress(mutate_bytes(zlib.decompress(data), random))
        except zlib.error:
            data = mutate_bytes(data, random)
    elif random.random() < 0.2:
        chunks.insert(index, chunks[random.randrange(len(chunks))])
    else:
        data = mutate_bytes(data, random)
    chunks[index] = (name, data)
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return content[:8] + b"".join(packed)


def mutate_image(content: bytes, random: Random) -> bytes:
    """Change a chunk of a PNG, a segment of a JPEG, or bytes near the start of other images."""
    if content.startswith(b"\x89PNG"):
        return mutate_png(content, random)
    if content.startswith(b"\xff\xd8") and random.random() < 0.8:
        return _changed_jpeg(content, random)
    first = random.choice([32, 128, len(content)])
    return mutate_bytes(content[:first], random) + content[first:]


def _changed_jpeg(content: bytes, random: Random) -> bytes:
    segments, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        length = 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        segments.append(content[at : at + length])
        at += length
    scans = content[at:]
    choice, index = random.randrange(6), random.randrange(len(segments))
    if choice == 0:
        segments.pop(index)
    elif choice == 1:
        segments.insert(index, random.choice(segments))
    elif choice == 2:  # more scans, whose number costs time
        scans = scans[:-2] * random.choice([2, 20]) + scans[-2:]
    elif choice == 3:
        scans = mutate_bytes(scans, random)
    else:
        body = mutate_bytes(segments[index][4:], random)
        segments[index] = segments[index][:2] + (len(body) + 2 & 0xFFFF).to_bytes(2, "big") + body
    return b"".join([*segments, scans])[:_MAX_BYTES]


def mutate_lines(content: bytes, random: Random) -> bytes:
    """Change the JSON document of a line."""
    lines = content.split(b"\n")
    if random.random() < 0.2:
        return mutate_text(content, random)
    index = random.randrange(len(lines))
    lines[index] = mutate_json(lines[index], random)
    return b"\n".join(lines)[:_MAX_BYTES]


def mutate_tar(content: bytes, random: Random) -> bytes:
    """Change members of a tar file, or fields of its headers with a correct checksum."""
    if random.random() < 0.5:
        try:
            return _rewritten_tar(content, random)
        except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError):
            return mutate_bytes(content, random)
    data = bytearray(content)
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return mutate_bytes(content, random)
    at = random.choice(headers)
    first, length = random.choice(
        [(0, 100), (100, 8), (124, 12), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)]
    )
    field = mutate_bytes(bytes(data[at + first : at + first + length]), random)
    if first == 156:
        field = random.choice([b"0", b"1", b"2", b"3", b"5", b"6", b"L", b"K", b"x", b"g", b"S", b"\0", b"V"])
    data[at + first : at + first + length] = field[:length].ljust(length, b"\0")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % (sum(data[at : at + 512]) % 8**6)
    return bytes(data)


def _rewritten_tar(content: bytes, random: Random) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as source:
        members = [(one, source.extractfile(one).read() if one.isfile() else b"") for one in source]  # type: ignore[union-attr]
    if not members:
        return mutate_bytes(content, random)
    index = random.randrange(len(members))
    choice = random.randrange(5)
    member, data = members[index]
    if choice < 2:
        changed = mutate_json(data, random) if data.startswith(b"{") else mutate_bytes(data, random)
        members[index] = member, changed
    elif choice == 2:
        member.name = str(tweak(member.name, random))
    elif choice == 3:
        members.pop(index)
    else:
        members.insert(random.randrange(len(members) + 1), members[index])
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=random.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    ) as target:
        for one, data in members:
            one.size = len(data)
            target.addfile(one, io.BytesIO(data))
    return buffer.getvalue()


def mutate_safetensors(content: bytes, random: Random) -> bytes:
    """Change the header of a safetensors file, or numbers in its tensors."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if not header.startswith(b"{") or random.random() < 0.1:
        return mutate_bytes(content, random)
    if random.random() < 0.5 and len(data) >= 8:
        at = random.randrange(len(data) // 8) * 8
        value = random.choice([one for one in INTEGERS if -(2**63) <= one < 2**63])
        packed = (
            struct.pack("<q", value)
            if random.random() < 0.7
            else struct.pack("<2f", *random.choices([0, 1, 3e38, float("nan")], k=2))
        )
        return content[: 8 + length + at] + packed + data[at + 8 :]
    changed = mutate_json_in_json(header, random)
    return len(changed).to_bytes(8, "little") + changed + data


def mutate_json_in_json(content: bytes, random: Random) -> bytes:
    """Change a JSON document, or one that it holds as text in its metadata."""
    try:
        document = json.loads(content)
        inner = document["__metadata__"]
        name = random.choice(list(inner))
        if random.random() < 0.7:
            inner[name] = mutate_json(inner[name].encode(), random).decode("utf-8", "replace")
            return json.dumps(document).encode()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        pass
    return mutate_json(content, random)


def mutate_pickle(content: bytes, random: Random) -> bytes:
    """Change operations of a pickle: their arguments, their order, their number."""
    try:
        found = list(pickletools.genops(content))
    except Exception:  # of any kind on malformed content
        return mutate_bytes(content, random)
    ends = [position for _, _, position in found[1:]] + [len(content)]
    pieces = [content[position:end] for (_, _, position), end in zip(found, ends, strict=True)]
    for _ in range(random.choice([1, 1, 2, 4])):
        index = random.randrange(len(pieces))
        choice = random.randrange(7)
        if choice < 3:
            pieces[index] = _changed_operation(pieces[index], pieces, random)
        elif choice == 3:
            pieces.pop(index)
        elif choice == 4:
            pieces.insert(index, random.choice(pieces))
        elif choice == 5:
            pieces.insert(index, _operation(random))
        else:
            other = random.randrange(len(pieces))
            pieces[index], pieces[other] = pieces[other], pieces[index]
        if not pieces:
            return b"."
    return b"".join(pieces)[:_MAX_BYTES]


def _changed_operation(piece: bytes, pieces: list[bytes], random: Random) -> bytes:
    """Change the argument of an operation, by one of the same kind where there is one."""
    same = [one for one in pieces if one[:1] == piece[:1]]
    if piece[:1] == b"c":
        return random.choice([*same, *_GLOBALS])
    if piece[:1] == b"X":
        text = random.choice([*(one[5:] for one in same), *(text.encode("utf-8", "surrogatepass") for text in TEXTS)])
        return b"X" + len(text).to_bytes(4, "little") + text
    if piece[:1] in (b"K", b"M", b"J", b"\x8a"):
        return _integer(random.choice(INTEGERS[:-1]))
    return random.choice(same) if random.random() < 0.7 else _operation(random)


def _integer(value: int) -> bytes:
    packed = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(packed)]) + packed


_GLOBALS = [
    f"c{module}\n{name}\n".encode()
    for module, name in (
        ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("torch", "FloatStorage"),
        ("torch", "HalfStorage"),
        ("torch._utils", "_rebuild_qtensor"), ("torch._utils", "_rebuild_sparse_tensor"), ("torch._utils",
        "_rebuild_meta_tensor_no_storage"),
        ("torch._utils", "_rebuild_wrapper_subclass"), ("torch.nested._internal.nested_tensor", "_rebuild_njt"),
        ("torch", "Size"),
        ("collections", "OrderedDict"), ("collections", "defaultdict"), ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("pathlib", "PosixPath"), ("argparse", "Namespace"), ("builtins", "set"), ("builtins", "bytearray"),
        ("builtins", "list"),
        ("builtins", "complex"), ("torch", "device"), ("torch.storage", "UntypedStorage"), ("torch.serialization",
        "_get_layout"),
        ("os", "system"), ("_codecs", "encode"),
    )
]  # fmt: skip


def _operation(random: Random) -> bytes:
    return random.choice(
        [
            *_GLOBALS, b"R", b"}", b"]", b")", b"(", b"t", b"u", b"s", b"a", b"e", b"b", b"0", b"2", b"N", b"\x88",
            b"Q", b".", b"\x81",
            b"q\x00", b"h\x00", b"\x86", b"\x87", b"\x85", b"r\xff\xff\xff\x7f",
            _integer(random.choice(INTEGERS[:-1])),
            b"G" + struct.pack(">d", random.choice(FLOATS)),
        ]
    )  # fmt: skip


MUTATORS: dict[str, Mutator] = {
    "bytes": mutate_bytes,
    "json": mutate_json,
    "header": mutate_json_in_json,
    "yaml": mutate_yaml,
    "text": mutate_text,
    "xml": mutate_xml,
    "png": mutate_png,
    "tar": mutate_tar,
    "safetensors": mutate_safetensors,
    "pickle": mutate_pickle,
    "image": mutate_image,
    "lines": mutate_lines,
    "form": mutate_text,
}
