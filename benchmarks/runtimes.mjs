// What a JavaScript package of ONNX Runtime answers for the files that runtimes.py wrote: node runtimes.mjs PACKAGE_FOLDER FILES
import { createRequire } from "node:module";
import { readFileSync, readdirSync } from "node:fs";
import { join, resolve } from "node:path";

const [where, root] = process.argv.slice(2);
const ort = createRequire(import.meta.url)(resolve(where));
const arrays = { float64: Float64Array, float32: Float32Array, int64: BigInt64Array };
const answers = {};
for (const name of readdirSync(root)) {
  const folder = join(root, name);
  const given = JSON.parse(readFileSync(join(folder, "batch.json")));
  try {
    const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(join(folder, "text.onnx"))));
    const feeds = {};
    for (const input of session.inputNames) {
      const { type, dims, data } = given[input];
      const raw = type === "string" ? null : Uint8Array.from(Buffer.from(data, "base64"));
      feeds[input] = new ort.Tensor(type, raw ? new arrays[type](raw.buffer) : data, dims);
    }
    answers[name] = [...(await session.run(feeds)).scores.data];
  } catch (error) {
    answers[name] = String(error.message);
  }
}
const text = JSON.stringify({ version: ort.env.versions.common, answers });
process.stdout.write(`${text}\n`, () => process.exit(0)); // the threads of WebAssembly would keep it alive
