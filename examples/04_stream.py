"""A prediction for each row as it comes: a run as a stream, with one state for each device, which survives a crash.

Is somebody in the room? Each minute brings temperature, humidity, light and CO2 (real data: Occupancy Detection). Two recordings
stand for two rooms whose rows arrive mixed.
"""

import tempfile
from pathlib import Path

import tidegate

folder = Path(tempfile.mkdtemp())
table = tidegate.datasets.read("occupancy")
run = tidegate.train(
    table,
    target="Occupancy",
    group="recording",
    time="date",
    split="split",
    hidden_size=32,
    epochs=3,
    baselines=False,
    out=folder / "run",
)

rooms = sorted(set(table.filter(split="test")["recording"]))
test = table.filter(split="test").sort("date", "recording")  # as two sensors send them
rows = test.rows(named=True)
print(f"{len(rows):,} rows of {len(rooms)} rooms: {', '.join(rooms)}")

stream = run.stream()
answers = []
for row in rows[:3000]:
    answers.append(stream.push(row, key=row["recording"]))
stream.save(folder / "states")  # whole or not at all: after a crash while saving, the file before is still there
answers.append(stream.push(rows[3000], key=rows[3000]["recording"]))

del stream, answers[3000:]  # a power cut: the last answer and the state after it are lost

stream = tidegate.load(folder / "run").stream()
stream.restore(folder / "states")
for row in rows[3000:]:
    answers.append(stream.push(row, key=row["recording"]))

# Predicting the whole table at once gives the same bits.
expected = run.predict(test)["prediction"].to_list()
assert [answer["prediction"] for answer in answers] == expected
print("row by row, with a crash on the way: every answer is that of run.predict")

right = sum(a["prediction"] == row["Occupancy"] for a, row in zip(answers, rows, strict=True))
print(f"{right / len(rows):.3f} of the answers are right")
for room in rooms:
    print(f"{room}: {stream.state(room).rows:,} rows, its state is {stream.state(room).parts['h'].nbytes} bytes")
stream.reset(rooms[0])  # another sensor in this room: its next row begins a new sequence
assert rooms[0] not in stream
