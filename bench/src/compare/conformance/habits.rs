//! The habits.
//!
//! `{image}` in a word is the image, `{name}` a name that nothing else has, `{dir}` a directory of the host with the files `in` and `env`.

mod life;
mod once;

/// What users do, and what they are used to come of it.
#[derive(Debug, Clone, Copy)]
pub struct Habit {
    /// In a few words.
    pub title: &'static str,
    pub(super) steps: &'static [Step],
    /// Why it comes to something else here, where that is meant.
    pub(super) differs: Option<&'static str>,
}

/// One command, and what of its answer is compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub words: &'static [&'static str],
    pub input: &'static str,
    pub told: Told,
    /// Of outputs, the order of lines says nothing.
    pub any_order: bool,
}

/// What an engine tells by a command that others are to tell as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Whether it could be done. Engines have codes of their own for why not.
    Success,
    /// Exit code.
    Code,
    /// That and stdout.
    Output,
    /// And stderr: where both are those of the container's process.
    All,
}

type Words = &'static [&'static str];

const fn step(words: Words, told: Told) -> Step {
    Step { words, input: "", told, any_order: false }
}
const fn done(words: Words) -> Step {
    step(words, Told::Success)
}
const fn code(words: Words) -> Step {
    step(words, Told::Code)
}
const fn out(words: Words) -> Step {
    step(words, Told::Output)
}
const fn all(words: Words) -> Step {
    step(words, Told::All)
}

impl Step {
    const fn fed(self, input: &'static str) -> Step {
        Step { input, ..self }
    }
    const fn any_order(self) -> Step {
        Step { any_order: true, ..self }
    }
}

const fn habit(title: &'static str, steps: &'static [Step]) -> Habit {
    Habit { title, steps, differs: None }
}

impl Habit {
    const fn differs(self, why: &'static str) -> Habit {
        Habit { differs: Some(why), ..self }
    }
}

/// All of them.
pub fn habits() -> impl Iterator<Item = &'static Habit> {
    once::HABITS.iter().chain(life::HABITS)
}
