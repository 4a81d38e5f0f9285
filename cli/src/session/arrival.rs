//! The first words of a guest that is to take the place of another, whose conversation goes on meanwhile.

use super::control::{Control, Received};
use super::conversation::Conversation;
use super::{Session, SessionError};
use guest_protocol::{GuestMessage, HostMessage, Phase, VERSION};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};

/// A guest that is waited for: by its connection first, then by its hello.
#[derive(Debug)]
pub struct Arrival {
    session: Session,
    control: Option<Control>,
    hello: Option<GuestMessage>,
}

impl Arrival {
    /// Waits for whoever connects to `session`.
    pub fn at(session: Session) -> Self {
        Self { session, control: None, hello: None }
    }

    /// Readable when there is something for [`Self::step`] to do. Another descriptor after each step.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.control.as_ref().map_or_else(|| self.session.control.listener.as_fd(), AsFd::as_fd)
    }

    /// Takes what has come; says whether the guest has said that it is a frozen clone. Never waits.
    ///
    /// # Errors
    /// It is something else.
    pub fn step(&mut self) -> Result<bool, SessionError> {
        let host = super::conversation::host("accept the guest's connection");
        let Some(control) = &mut self.control else {
            match self.session.control.listener.accept() {
                Ok((connection, _)) => {
                    let mut control = Control::new(connection).map_err(host)?;
                    control.send(&HostMessage::Hello { version: VERSION })?;
                    self.control = Some(control);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(host(error)),
            }
            return Ok(false);
        };
        if self.hello.is_some() {
            return Ok(true);
        }
        let received = control.receive();
        match control.take()? {
            Some(hello @ GuestMessage::Hello { version: VERSION, phase: Phase::Frozen { .. }, .. }) => {
                self.hello = Some(hello);
                Ok(true)
            }
            Some(GuestMessage::Hello { version, .. }) if version != VERSION => {
                Err(SessionError::Version { guest: version })
            }
            Some(_) => Err(SessionError::Unexpected("guest that is no frozen clone")),
            None => {
                if received == Received::End {
                    // One that its kernel has given up, since nobody answered for two seconds: init connects anew.
                    self.control = None;
                }
                Ok(false)
            }
        }
    }

    /// Goes on with it, whose VM `vm` is, as [`Session::begin`] does: it can be thawed.
    ///
    /// # Errors
    /// As [`Session::begin`]; it has not said hello.
    pub fn begin<'a>(&'a mut self, vm: BorrowedFd<'a>) -> Result<Conversation<'a>, SessionError> {
        let (control, hello) = self.control.take().zip(self.hello.take()).ok_or(SessionError::GuestClosed)?;
        let mut conversation = self.session.begin(vm)?;
        conversation.resume(control, hello)?;
        Ok(conversation)
    }
}
