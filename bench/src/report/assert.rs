//! Conditions on what was measured: `vm-warm.start.p99 < 3*crun.start.p99`.
//!
//! ```text
//! condition: sum ("<" | "<=" | ">" | ">=") sum
//! sum:       product (("+" | "-") product)*
//! product:   atom (("*" | "/") atom)*
//! atom:      number | ARM "." METRIC ["." STATISTIC] | "(" sum ")"
//! ```
//!
//! A minus that is to subtract stands apart from the name before it: names have minus signs in them. Without a statistic, the
//! median is meant.

use super::Document;
use super::metric::{ARMS, METRICS, kind, metric};

/// What can be asked of a row of an arm.
const STATISTICS: [&str; 6] = ["p50", "p90", "p99", "min", "max", "mean"];
/// How deep parentheses may go.
const DEEPEST: usize = 32;
/// Longest condition, bytes.
const LONGEST: usize = 4096;

/// A condition that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Assertion {
    text: String,
    left: Expression,
    relation: Relation,
    right: Expression,
}

#[derive(Debug, Clone, PartialEq)]
enum Expression {
    Number(f64),
    Figure(Figure),
    Binary(Box<Expression>, char, Box<Expression>),
}

/// A statistic of a row of an arm.
#[derive(Debug, Clone, PartialEq)]
struct Figure {
    arm: &'static str,
    metric: &'static str,
    statistic: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Less,
    LessOrSame,
    More,
    MoreOrSame,
}

const RELATIONS: [(&str, Relation); 4] =
    [("<=", Relation::LessOrSame), (">=", Relation::MoreOrSame), ("<", Relation::Less), (">", Relation::More)];

/// Why a condition says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssertError {
    /// It is not written as one.
    #[error("'{text}', character {at}: {problem}")]
    Syntax {
        /// The condition.
        text: String,
        /// Where, from 1.
        at: usize,
        /// What is wrong there.
        problem: String,
    },
    /// What it is about was not measured.
    #[error("'{text}': there is no {figure} in this result; it has {there}")]
    Missing {
        /// The condition.
        text: String,
        /// What it asks for.
        figure: String,
        /// What there is of that arm or row.
        there: String,
    },
}

/// Whether a condition holds, and the figures that tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// It does.
    pub holds: bool,
    /// Both sides, and each figure.
    pub figures: String,
}

impl std::str::FromStr for Assertion {
    type Err = AssertError;

    fn from_str(text: &str) -> Result<Self, AssertError> {
        let mut parser = Parser { text, at: 0, depth: 0 };
        parser.condition().map_err(|problem| AssertError::Syntax {
            text: text.chars().take(LONGEST).collect(),
            at: text[..parser.at].chars().count() + 1,
            problem,
        })
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Byte that comes next.
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn condition(&mut self) -> Result<Assertion, String> {
        if self.text.len() > LONGEST {
            return Err(format!("it is longer than {LONGEST} bytes"));
        }
        let left = self.sum()?;
        let rest = self.rest();
        let relation = RELATIONS.iter().find(|(sign, _)| rest.starts_with(sign));
        let (sign, relation) = *relation.ok_or("expected <, <=, > or >=")?;
        self.at += sign.len();
        let right = self.sum()?;
        match self.rest() {
            "" => Ok(Assertion { text: self.text.to_owned(), left, relation, right }),
            _ => Err("expected nothing more here".into()),
        }
    }

    /// What is still to be read, without the space before it.
    fn rest(&mut self) -> &str {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        &self.text[self.at..]
    }

    fn sum(&mut self) -> Result<Expression, String> {
        self.chain(['+', '-'], Self::product)
    }

    fn product(&mut self) -> Result<Expression, String> {
        self.chain(['*', '/'], Self::atom)
    }

    fn chain(
        &mut self,
        signs: [char; 2],
        part: fn(&mut Self) -> Result<Expression, String>,
    ) -> Result<Expression, String> {
        let mut all = part(self)?;
        while let Some(sign) = self.rest().chars().next().filter(|sign| signs.contains(sign)) {
            self.at += 1;
            all = Expression::Binary(Box::new(all), sign, Box::new(part(self)?));
        }
        Ok(all)
    }

    fn atom(&mut self) -> Result<Expression, String> {
        let rest = self.rest();
        match rest.chars().next() {
            Some('(') => {
                self.depth += 1;
                if self.depth > DEEPEST {
                    return Err(format!("more than {DEEPEST} parentheses in each other"));
                }
                self.at += 1;
                let inside = self.sum()?;
                if !self.rest().starts_with(')') {
                    return Err("expected )".into());
                }
                self.at += 1;
                self.depth -= 1;
                Ok(inside)
            }
            Some(c) if c.is_ascii_digit() => {
                let length = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
                let number = rest[..length].parse().map_err(|_| format!("'{}' is no number", &rest[..length]))?;
                self.at += length;
                Ok(Expression::Number(number))
            }
            Some(c) if c.is_ascii_alphabetic() => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
                let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                let figure = figure(&rest[..length])?;
                self.at += length;
                Ok(Expression::Figure(figure))
            }
            _ => Err("expected a number, ARM.METRIC.STATISTIC or (".into()),
        }
    }
}

fn figure(text: &str) -> Result<Figure, String> {
    let names = |names: &mut dyn Iterator<Item = &'static str>| names.collect::<Vec<_>>().join(", ");
    let mut words = text.split('.');
    let (arm, row, statistic) = (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next());
    let arm = kind(arm)
        .ok_or_else(|| format!("there is no arm '{arm}'; there are {}", names(&mut ARMS.iter().map(|arm| arm.name))))?;
    let metric = metric(row).ok_or_else(|| {
        format!("'{}' has no row '{row}'; there are {}", arm.name, names(&mut METRICS.iter().map(|row| row.key)))
    })?;
    let wanted = statistic.unwrap_or("p50");
    let statistic = STATISTICS.into_iter().find(|known| *known == wanted);
    match statistic.filter(|_| words.next().is_none()) {
        Some(statistic) => Ok(Figure { arm: arm.name, metric: metric.key, statistic }),
        None => Err(format!("'{text}': after the row can be {}", names(&mut STATISTICS.into_iter()))),
    }
}

impl Assertion {
    /// Whether it holds.
    ///
    /// # Errors
    /// A figure that it needs was not measured.
    pub fn check(&self, document: &Document) -> Result<Checked, AssertError> {
        let mut figures = Vec::new();
        let left = self.value(&self.left, document, &mut figures)?;
        let right = self.value(&self.right, document, &mut figures)?;
        let (holds, sign) = match self.relation {
            Relation::Less => (left < right, "<"),
            Relation::LessOrSame => (left <= right, "<="),
            Relation::More => (left > right, ">"),
            Relation::MoreOrSame => (left >= right, ">="),
        };
        let not = if holds { "is" } else { "is not" };
        Ok(Checked { holds, figures: format!("{left:.3} {not} {sign} {right:.3} ({})", figures.join(", ")) })
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn value(&self, of: &Expression, document: &Document, figures: &mut Vec<String>) -> Result<f64, AssertError> {
        Ok(match of {
            Expression::Number(number) => *number,
            Expression::Binary(left, sign, right) => {
                let (left, right) = (self.value(left, document, figures)?, self.value(right, document, figures)?);
                match sign {
                    '+' => left + right,
                    '-' => left - right,
                    '*' => left * right,
                    _ => left / right,
                }
            }
            Expression::Figure(Figure { arm, metric: key, statistic }) => {
                let missing = || AssertError::Missing {
                    text: self.text.clone(),
                    figure: format!("{arm}.{key}"),
                    there: there(document, arm),
                };
                let all = document.estimate(arm, key).ok_or_else(missing)?;
                let value = match *statistic {
                    "p90" => all.p90.value,
                    "p99" => all.p99.value,
                    "min" => all.min,
                    "max" => all.max,
                    "mean" => all.mean,
                    _ => all.p50.value,
                };
                let unit = metric(key).map_or("", |metric| metric.unit.text());
                figures.push(format!("{arm}.{key}.{statistic} = {value:.3} {unit}").trim_end().to_owned());
                value
            }
        })
    }
}

/// What there is of that arm; if there is nothing, why.
fn there(document: &Document, arm: &str) -> String {
    let rows: Vec<_> =
        document.rows().filter(|row| !document.samples(arm, row.key).is_empty()).map(|row| row.key).collect();
    if !rows.is_empty() {
        return format!("{arm}: {}", rows.join(", "));
    }
    let problem = document.arms.iter().find(|other| other.name == arm).and_then(|arm| arm.problem.as_deref());
    format!("nothing of {arm}: {}", problem.unwrap_or("it was not asked for"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::document;

    fn check(text: &str) -> Result<Checked, AssertError> {
        let samples = (1..=100).map(f64::from).collect::<Vec<_>>();
        let all = document(&[("vm-warm", "start", samples), ("crun", "start", vec![40.0; 30])]);
        text.parse::<Assertion>()?.check(&all)
    }

    #[test]
    fn conditions_hold_or_do_not() {
        for (text, holds) in [
            ("vm-warm.start.p99 < 3*crun.start.p99", true),
            ("vm-warm.start.p99<2*crun.start.p99", false),
            ("vm-warm.start.max == 100", false),
            ("vm-warm.start >= 50", true),
            ("vm-warm.start.p90 - vm-warm.start.p50 <= 40", true),
            ("(1 + 2) * 3 > 8.9", true),
            ("10 / 4 - 1 < 1.5", false),
            ("2 - 1 - 1 <= 0", true),
        ] {
            if text.contains("==") {
                assert!(check(text).is_err());
                continue;
            }
            let checked = check(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(checked.holds, holds, "{text}: {checked:?}");
        }
        let figures = check("vm-warm.start.p99 < 2*crun.start.p99").unwrap().figures;
        assert_eq!(figures, "99.000 is not < 80.000 (vm-warm.start.p99 = 99.000 ms, crun.start.p99 = 40.000 ms)");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let deep = "(".repeat(100) + "1 < 2";
        let long = "1".repeat(5000);
        for (text, at, word) in [
            ("", 1, "expected a number"),
            ("1 <", 4, "expected a number"),
            ("1 2", 3, "expected <"),
            ("1 < 2 3", 7, "nothing more"),
            ("(1 < 2", 4, "expected )"),
            ("1 < 1.2.3", 5, "no number"),
            ("9 < vm-hot.start.p50", 5, "there is no arm 'vm-hot'"),
            ("crun.speed < 1", 1, "no row 'speed'"),
            ("1 > crun.start.p42", 5, "p50, p90"),
            ("1 > crun.start.p50.x", 5, "p50, p90"),
            ("1 > ü", 5, "expected a number"),
            ("ü", 1, "expected a number"),
            (&deep, 33, "parentheses"),
            (&long, 1, "longer"),
        ] {
            match text.parse::<Assertion>() {
                Err(AssertError::Syntax { at: place, problem, .. }) => {
                    assert!(place == at && problem.contains(word), "{text}: {place}, {problem}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_was_not_measured_is_named_with_what_was() {
        let error = check("crun.rate > 1").unwrap_err().to_string();
        assert!(error.contains("no crun.rate") && error.contains("crun: start"), "{error}");
        let error = check("docker.start > 1").unwrap_err().to_string();
        assert!(error.contains("nothing of docker"), "{error}");
    }
}
