"""Occupancy: what a logistic regression of the single row reaches, on all training rows and on the first 85 % of them.

    pip install scikit-learn && python benchmarks/occupancy_logistic.py

`tidegate train` holds out the last 15 % of the training rows to choose the best epoch. On these data that costs more
than any model gains: this script shows how much.
"""

from __future__ import annotations

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tidegate import datasets

FEATURES = ["Temperature", "Humidity", "Light", "CO2", "HumidityRatio"]


def main() -> None:
    frame = datasets.read("occupancy")
    train, test = frame.filter(split="train"), frame.filter(split="test")
    for title, rows in {"all training rows": train, "their first 85 %": train.head(round(0.85 * train.height))}.items():
        model = make_pipeline(StandardScaler(), LogisticRegression())
        model.fit(rows[FEATURES].to_numpy(), rows["Occupancy"].to_numpy())
        print(f"{title}: accuracy {model.score(test[FEATURES].to_numpy(), test['Occupancy'].to_numpy()):.3f}")


if __name__ == "__main__":
    main()
