//! Figures, as a table and as JSON.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Map, Value, json};

/// Values of one quantity from several runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    values: Vec<f64>,
}

impl Series {
    pub(super) fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut values = self.values.clone();
        values.sort_unstable_by(f64::total_cmp);
        values
    }

    /// The value below which `share` of all lie; NaN of none.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    pub(super) fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            length if length % 2 == 0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        }
    }

    fn min(&self) -> f64 {
        self.quantile(0.0)
    }

    fn max(&self) -> f64 {
        self.quantile(1.0)
    }
}

/// Everything measured, in the order in which it is shown.
#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    key: &'static str,
    what: String,
    unit: &'static str,
    series: Series,
    /// Moved by one operation; shows a rate.
    bytes: Option<u64>,
}

impl Report {
    /// A report that shows transfers of `bytes` in this order, whatever is measured first.
    pub(super) fn of_transfers(bytes: u64, rows: &[(&'static str, &str)]) -> Self {
        let mut report = Self::default();
        for (key, what) in rows {
            report.row(key, what, "s", Some(bytes));
        }
        report
    }

    /// The series called `key`, shown as `what` in `unit`.
    pub(super) fn series(&mut self, key: &'static str, what: &str, unit: &'static str) -> &mut Series {
        self.row(key, what, unit, None)
    }

    fn row(&mut self, key: &'static str, what: &str, unit: &'static str, bytes: Option<u64>) -> &mut Series {
        let index = self.rows.iter().position(|row| row.key == key).unwrap_or(self.rows.len());
        if index == self.rows.len() {
            self.rows.push(Row { key, what: what.to_owned(), unit, series: Series::default(), bytes });
        }
        &mut self.rows[index].series
    }

    /// The value of `key` below which `share` of all lie; NaN when it was not measured.
    pub(super) fn quantile(&self, key: &str, share: f64) -> f64 {
        self.rows.iter().find(|row| row.key == key).map_or(f64::NAN, |row| row.series.quantile(share))
    }

    /// The median of `key`; NaN when it was not measured.
    pub(super) fn median(&self, key: &str) -> f64 {
        self.rows.iter().find(|row| row.key == key).map_or(f64::NAN, |row| row.series.median())
    }

    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["", "min", "median", "max", "", "MiB/s at the median"]);
        for Row { what, unit, series, bytes, .. } in &self.rows {
            let figures = [series.min(), series.median(), series.max()].map(figure);
            let rate = bytes.map(|bytes| format!("{:.0}", bytes as f64 / f64::from(1 << 20) / series.median()));
            let [min, median, max] = figures;
            table.add_row([what.clone(), min, median, max, (*unit).to_owned(), rate.unwrap_or_default()]);
        }
        for column in [1, 2, 3, 5] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.to_string()
    }

    pub(super) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|Row { key, unit, series, .. }| {
            let values = &series.values;
            let row = json!({
                "unit": unit, "min": series.min(), "median": series.median(), "max": series.max(), "values": values
            });
            ((*key).to_owned(), row)
        });
        Value::Object(rows.collect::<Map<_, _>>())
    }
}

fn figure(value: f64) -> String {
    match value {
        value if value.is_nan() => "–".to_owned(),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles() {
        let series = |values: &[f64]| Series { values: values.to_vec() };
        assert_eq!(series(&[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(series(&[4.0, 1.0]).median(), 2.5);
        let hundred = series(&(1..=100).map(f64::from).collect::<Vec<_>>());
        assert_eq!((hundred.quantile(0.5), hundred.quantile(0.99), hundred.max()), (50.0, 99.0, 100.0));
        assert_eq!(hundred.min(), 1.0);
        assert!(series(&[]).median().is_nan() && series(&[]).max().is_nan());
    }
}
