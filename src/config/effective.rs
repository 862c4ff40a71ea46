//! The configuration as it takes effect: every key with its value, defaults filled in. What has neither is left out.

use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::schema::{Kind, Preset, Table};

/// Of a text that had no errors.
pub(super) fn effective(root: &DeTable<'_>, schema: &Table) -> Value {
    table(Some(root), schema, root.get("timeouts").and_then(|value| value.get_ref().as_table()))
}

/// `all` is `[timeouts]`, which listeners and clusters inherit from.
fn table(values: Option<&DeTable<'_>>, schema: &Table, all: Option<&DeTable<'_>>) -> Value {
    let mut object = Map::new();
    for row in schema.rows {
        let found = values.and_then(|values| values.get(row.key)).map(|value| value.get_ref());
        let value = match (&row.kind, found) {
            (Kind::Table(below), found) => Some(table(found.and_then(DeValue::as_table), below, all)),
            // Deadlines of its own or inherited, they are in effect.
            (Kind::Choice(below), found) if below.is_inherited() => {
                Some(table(found.and_then(DeValue::as_table), below, all))
            }
            (Kind::Choice(below), found) => {
                found.and_then(DeValue::as_table).map(|own| table(Some(own), below, all))
            }
            (Kind::Tables(below), found) => {
                let items = found.and_then(DeValue::as_array).into_iter().flat_map(|items| items.iter());
                let items: Vec<Value> =
                    items.map(|item| table(item.get_ref().as_table(), below, all)).collect();
                if items.is_empty() { None } else { Some(Value::Array(items)) }
            }
            (_, Some(found)) => Some(plain(found)),
            (_, None) => match row.preset {
                Preset::Boolean(default) => Some(default.into()),
                Preset::Integer(default) => Some(default.into()),
                Preset::Ratio(default) => Some(default.into()),
                Preset::Text(default) => Some(default.into()),
                Preset::Inherited(default) => {
                    let inherited = all.and_then(|all| all.get(row.key));
                    Some(inherited.map_or_else(|| default.into(), |value| plain(value.get_ref())))
                }
                _ => None,
            },
        };
        object.extend(value.map(|value| (row.key.to_owned(), value)));
    }
    Value::Object(object)
}

fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::from(&**text),
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok().into(),
        DeValue::Float(number) => number.as_str().parse::<f64>().ok().into(),
        DeValue::Boolean(boolean) => Value::from(*boolean),
        DeValue::Datetime(time) => Value::from(time.to_string()),
        DeValue::Array(items) => items.iter().map(|item| plain(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let pairs = table.iter().map(|(key, value)| (key.get_ref().to_string(), plain(value.get_ref())));
            Value::Object(pairs.collect())
        }
    }
}
