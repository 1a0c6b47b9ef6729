"""Reads and uses mutated files of a tokenizer, one after another: GOOD.json COUNT BAD.json SEED. It writes BAD.json.

It prints how many were read as tokenizers, and the growth of memory in megabytes.
"""

import copy
import json
import random
import sys

from gpurnn.models import TokenizerVocabulary

STRANGE = [
    None, True, -1, 0, 2**31, 2**32, 2**63, 2**70, 1e308, float("nan"), "", "a", "\ud800", "(", "(a*)*b", "x" * 10**6,
    [], {}, [[]] * 1000, {"type": "Sequence"}, {"Regex": "(?:(?:a+)+)+$"}, {"String": ""}, {"type": "Replace"},
    "(" * 10**4 + ")" * 10**4, {"Regex": "(" * 10**5}, {"Regex": "((a{999}){999}){999}"},
]  # fmt: skip
TEXT = ("the cat " + "a" * 40 + "\n\u00e9 ") * 20


def damaged(data, rng):
    """Change, leave out or double some bytes, or cut off the end."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 50, 5000])
        change = rng.randrange(4)
        if change == 0:
            data[at : at + size] = rng.randbytes(size)
        elif change == 1:
            del data[at : at + size]
        elif change == 2:
            data[at:at] = data[at : at + size]
        else:
            del data[at:]
    return bytes(data)


def places(node):
    """Every entry of a JSON document, but only a few of the vocabulary and the merges."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    for key in keys[:5] + keys[-5:] if len(keys) > 40 else keys:
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from places(node[key])


def forged(data, rng):
    """A sound document with other values in it, or with some removed."""
    document = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        found = list(places(document))
        if not found:
            break
        node, key = rng.choice(found)
        if rng.random() < 0.2:
            del node[key]
        else:
            node[key] = copy.deepcopy(rng.choice(STRANGE))
    return json.dumps(document).encode()


def peak():
    """The peak memory of this process, in MB. The system's figure for a child includes its parent's."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def main(good, count, bad, seed):
    with open(good, "rb") as file:
        data = file.read()
    rng, read = random.Random(int(seed)), 0
    before = peak()
    for _ in range(int(count)):
        with open(bad, "wb") as file:
            file.write((damaged if rng.random() < 0.4 else forged)(data, rng))
        try:
            vocabulary = TokenizerVocabulary.from_file(bad)
            read += 1
            vocabulary.decode(vocabulary.encode(TEXT))
        except ValueError as error:
            if len(str(error)) > 2000:
                raise
    print(json.dumps({"read": read, "megabytes": peak() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
