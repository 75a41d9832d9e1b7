//! A validator for JSON Schema, with the keywords that our schemas use. Any other keyword is an error, not ignored.

use std::sync::LazyLock;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The schema of the records that xctl prints.
static PRINTED: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(xctl::output::SCHEMA).unwrap_or_else(|error| panic!("the schema: {error}")));

/// Reads a line that `trace`, `top` or `sockets` printed. An error unless it is a record that fits the schema, and `T`.
pub fn record<T: DeserializeOwned>(line: &str) -> Result<T> {
    let read = || {
        let value: Value = serde_json::from_str(line)?;
        let kind = value["type"].as_str().context("it has no type")?;
        let schema = PRINTED["$defs"].get(kind).with_context(|| format!("the schema has no type {kind}"))?;
        is(&PRINTED, schema, &value, kind)?;
        Ok::<_, anyhow::Error>(serde_json::from_value(value)?)
    };
    read().with_context(|| format!("not a record of the schema: {line}"))
}

/// Checks `value` against `schema`; an error if it does not fit.
pub fn check(schema: &Value, value: &Value) -> Result<()> {
    is(schema, schema, value, "")
}

fn is(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<()> {
    let keywords = schema.as_object().with_context(|| format!("the schema of {at} is no object"))?;
    for (keyword, wanted) in keywords {
        match keyword.as_str() {
            "type" => {
                let types = wanted.as_array().map_or(std::slice::from_ref(wanted), Vec::as_slice);
                ensure!(types.iter().any(|ty| has_type(ty, value)), "{at} is {value}, not of type {wanted}");
            }
            "enum" => {
                let values = wanted.as_array().context("enum is no list")?;
                ensure!(values.contains(value), "{at} is {value}, not one of {wanted}");
            }
            "required" => {
                for name in wanted.as_array().context("required is no list")?.iter().filter(|_| value.is_object()) {
                    let name = name.as_str().context("required: a name is no string")?;
                    ensure!(value.get(name).is_some(), "{at} has no {name}");
                }
            }
            "properties" => {
                for (name, schema) in wanted.as_object().context("properties is no object")? {
                    if let Some(value) = value.get(name) {
                        is(root, schema, value, &format!("{at}/{name}"))?;
                    }
                }
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                for (name, value) in value.as_object().into_iter().flatten() {
                    match wanted {
                        _ if known.is_some_and(|known| known.contains_key(name)) => {}
                        Value::Bool(false) => bail!("{at} has {name}, which the schema does not know"),
                        wanted => is(root, wanted, value, &format!("{at}/{name}"))?,
                    }
                }
            }
            "items" => {
                for (number, value) in value.as_array().into_iter().flatten().enumerate() {
                    is(root, wanted, value, &format!("{at}/{number}"))?;
                }
            }
            "anyOf" => {
                let ways = wanted.as_array().context("anyOf is no list")?;
                let wrong: Vec<_> = ways.iter().filter_map(|way| is(root, way, value, at).err()).collect();
                ensure!(wrong.len() < ways.len(), "{at} fits nothing: {wrong:?}");
            }
            "$ref" => {
                let path = wanted.as_str().and_then(|path| path.strip_prefix('#')).context("a $ref elsewhere")?;
                let schema = root.pointer(path).with_context(|| format!("no {path} in the schema"))?;
                is(root, schema, value, at)?;
            }
            "$schema" | "$defs" | "title" | "description" => {}
            other => bail!("a keyword that this does not check: {other}"),
        }
    }
    Ok(())
}

fn has_type(ty: &Value, value: &Value) -> bool {
    match ty.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    }
}
