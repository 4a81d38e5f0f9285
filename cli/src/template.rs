//! `--format`: the part of Go's templates that people use with docker: text, `{{.Field.Of.It}}`, `{{json .Field}}`.

use serde_json::Value;

/// A template, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { path: Vec<String>, json: bool },
}

impl Template {
    /// Parses one; `\t` and `\n` are a tab and a line end.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, tail) =
                after.split_once("}}").ok_or_else(|| format!("template '{text}': a '{{{{' without '}}}}'"))?;
            parts.push(Part::Text(unescape(before)));
            parts.push(action_of(action.trim()).ok_or_else(|| {
                format!("template '{text}': '{{{{{action}}}}}' is not supported; there are {{{{.Field}}}} and {{{{json .Field}}}}")
            })?);
            rest = tail;
        }
        parts.push(Part::Text(unescape(rest)));
        Ok(Template(parts))
    }

    /// Fills it in.
    pub fn render(&self, value: &Value) -> Result<String, String> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field { path, json } => out.push_str(&shown(look(value, path)?, *json)),
            }
        }
        Ok(out)
    }

    /// The names of its fields in capitals, as a table's head has them.
    pub fn head(&self) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field { path, .. } => path.last().map_or(String::new(), |name| name.to_uppercase()),
        };
        self.0.iter().map(part).collect()
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn action_of(action: &str) -> Option<Part> {
    let (json, field) = match action.strip_prefix("json ") {
        Some(field) => (true, field.trim()),
        None => (false, action),
    };
    let names = field.strip_prefix('.')?;
    let path: Vec<String> = if names.is_empty() { Vec::new() } else { names.split('.').map(str::to_owned).collect() };
    let sound =
        path.iter().all(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    sound.then_some(Part::Field { path, json })
}

fn look<'a>(value: &'a Value, path: &[String]) -> Result<&'a Value, String> {
    path.iter().try_fold(value, |value, name| {
        let there_is = || value.as_object().map(|members| members.keys().cloned().collect::<Vec<_>>().join(", "));
        value.get(name).ok_or_else(|| match there_is() {
            Some(names) => format!("there is no field '{name}'; there is: {names}"),
            None => format!("there is no field '{name}' in what is no object"),
        })
    })
}

fn shown(value: &Value, json: bool) -> String {
    match value {
        Value::String(text) if !json => text.clone(),
        Value::Null if !json => "<no value>".into(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_are_filled_in() {
        let value = json!({ "ID": "ab", "State": { "Running": true, "ExitCode": 3 }, "L": ["x"], "N": null });
        let render = |text: &str| Template::parse(text).and_then(|template| template.render(&value));
        for (text, want) in [
            ("{{.ID}}\\t{{ .State.ExitCode }}!", "ab\t3!"),
            ("{{json .ID}} {{json .State}}", "\"ab\" {\"ExitCode\":3,\"Running\":true}"),
            ("{{.State.Running}} {{.L}} {{.N}}", "true [\"x\"] <no value>"),
            ("plain }}", "plain }}"),
            ("", ""),
        ] {
            assert_eq!(render(text), Ok(want.into()), "{text}");
        }
        assert_eq!(render("{{json .}}").unwrap(), value.to_string());
        for bad in ["{{.No}}", "{{.ID.No}}", "{{", "{{}}", "{{range .L}}x{{end}}", "{{.a..b}}", "{{ID}}", "{{json}}"] {
            assert!(render(bad).is_err(), "{bad}");
        }
        assert_eq!(Template::parse("{{.ID}}\\t{{.State.Running}}").unwrap().head(), "ID\tRUNNING");
    }
}
