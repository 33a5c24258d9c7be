//! Checks a value against a schema: as much of JSON Schema 2020-12 as ours uses. A keyword that is
//! not known here is an error, so that a schema never says more than is checked.

use serde_json::Value;

/// Checks `value` against all of `schema`.
pub(crate) fn check(schema: &Value, value: &Value) -> Result<(), String> {
    matches(schema, schema, value, "")
}

fn matches(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let keywords = schema.as_object().ok_or("a schema is an object")?;
    for (keyword, wanted) in keywords {
        let holds = match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" => true,
            "$ref" => {
                let path = wanted.as_str().and_then(|path| path.strip_prefix('#'));
                let target = path.and_then(|path| root.pointer(path));
                let target = target.ok_or_else(|| format!("{wanted} leads nowhere"))?;
                matches(root, target, value, at)?;
                true
            }
            "oneOf" => {
                let options = wanted.as_array().ok_or("oneOf is a list")?;
                let mut errors = Vec::new();
                for option in options {
                    errors.extend(matches(root, option, value, at).err());
                }
                if options.len() - errors.len() != 1 {
                    let count = options.len() - errors.len();
                    return Err(format!("{at} is {count} of oneOf: {}", errors.join("; ")));
                }
                true
            }
            "type" => is_of_type(value, wanted)?,
            "const" => value == wanted,
            "enum" => wanted.as_array().is_some_and(|all| all.contains(value)),
            "minimum" => value.as_i64() >= wanted.as_i64(),
            "minLength" => value
                .as_str()
                .is_some_and(|text| text.len() >= count(wanted)),
            "minItems" => value
                .as_array()
                .is_some_and(|all| all.len() >= count(wanted)),
            "maxItems" => value
                .as_array()
                .is_some_and(|all| all.len() <= count(wanted)),
            "required" => names(wanted)?.iter().all(|name| value.get(name).is_some()),
            "properties" => {
                let schemas = wanted.as_object().ok_or("properties is an object")?;
                for (name, schema) in schemas {
                    if let Some(value) = value.get(name) {
                        matches(root, schema, value, &format!("{at}/{name}"))?;
                    }
                }
                true
            }
            "additionalProperties" if *wanted == Value::Bool(false) => {
                let known = keywords.get("properties").and_then(Value::as_object);
                value.as_object().is_none_or(|object| {
                    object
                        .keys()
                        .all(|name| known.is_some_and(|known| known.contains_key(name)))
                })
            }
            "items" => {
                for (place, item) in value.as_array().into_iter().flatten().enumerate() {
                    matches(root, wanted, item, &format!("{at}/{place}"))?;
                }
                true
            }
            other => return Err(format!("the keyword {other:?} is not known")),
        };
        if !holds {
            return Err(format!("{at}: {keyword} {wanted}"));
        }
    }
    Ok(())
}

fn is_of_type(value: &Value, wanted: &Value) -> Result<bool, String> {
    Ok(match wanted.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("boolean") => value.is_boolean(),
        _ => return Err(format!("the type {wanted} is not known")),
    })
}

fn count(wanted: &Value) -> usize {
    let count = wanted.as_u64().expect("a schema counts in whole numbers");
    usize::try_from(count).expect("a small one")
}

fn names(wanted: &Value) -> Result<Vec<&str>, String> {
    let all = wanted.as_array().ok_or("required is a list")?;
    Ok(all.iter().filter_map(Value::as_str).collect())
}
