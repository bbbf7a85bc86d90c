// A reader of cache files written from docs/cache-format.md alone: node cache_reader.mjs FILE
// prints every dataset as JSON; float16 as numbers, int64 as decimal text.
import { readFileSync } from "node:fs";

const content = readFileSync(process.argv[2]);
const firstEnd = content.indexOf(10);
const secondEnd = content.indexOf(10, firstEnd + 1);
if (content.toString("ascii", 0, firstEnd) !== "featcache cache 1") throw new Error("name or version");
const seal = JSON.parse(content.toString("ascii", firstEnd + 1, secondEnd));
if (seal.length !== content.length) throw new Error("length");
if (content.subarray(secondEnd + 34, seal.user_block).some((byte) => byte)) throw new Error("zeros");

const half = (bits) => {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
};
const types = {
  float16: [2, (at) => half(content.readUInt16LE(at))],
  float32: [4, (at) => content.readFloatLE(at)],
  float64: [8, (at) => content.readDoubleLE(at)],
  int64: [8, (at) => String(content.readBigInt64LE(at))],
  int32: [4, (at) => content.readInt32LE(at)],
  uint8: [1, (at) => content.readUInt8(at)],
};
const found = {};
for (const [name, { offset, bytes, shape, dtype, checksums }] of Object.entries(seal.columns)) {
  const [size, value] = types[dtype];
  if (shape.reduce((a, b) => a * b, size) !== bytes) throw new Error("bytes");
  const blocks = Math.ceil(bytes / 2 ** 20);
  for (const [start, length] of [[offset, bytes], [checksums, 16 * blocks]])
    if (length && (start < seal.user_block || start + length > seal.length)) throw new Error("place");
  found[name] = { shape, values: Array.from({ length: bytes / size }, (_, number) => value(offset + number * size)) };
}
console.log(JSON.stringify(found));
