//! Which requests wait for an answer.
//!
//! A slot per request, reused when it is answered: as many slots as were ever
//! unanswered at once, whatever the order of the answers. The correlation names
//! slot and generation, so an answer that comes twice finds nothing.

use ringbolt_wire::Opcode;

/// Ties an answer to its request; unique among the unanswered requests of one
/// session, never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Correlation(pub u64);

impl Correlation {
    /// A small number that no other unanswered request of the session has:
    /// below the most that were ever unanswered at once, so it can index an
    /// array.
    #[inline]
    pub fn slot(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn new(slot: u32, generation: u32) -> Self {
        Correlation(u64::from(generation) << 32 | u64::from(slot))
    }
}

#[derive(Debug)]
struct Slot<T> {
    /// Starts at 1, so that no correlation is 0.
    generation: u32,
    /// `None`: free.
    request: Option<(Opcode, Option<T>)>,
}

#[derive(Debug)]
pub(super) struct InFlight<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: u32,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        InFlight { slots: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> InFlight<T> {
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    #[inline]
    pub fn insert(&mut self, opcode: Opcode, tag: Option<T>) -> Correlation {
        self.len += 1;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, request: None });
                // The callers' limit is a u32.
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1).max(1);
        slot.request = Some((opcode, tag));
        Correlation::new(index, slot.generation)
    }

    /// The request with this correlation, if one waits; it goes on waiting.
    #[inline]
    pub fn get(&self, correlation: Correlation) -> Option<(Opcode, Option<&T>)> {
        let slot = self.slots.get(correlation.slot())?;
        if u64::from(slot.generation) != correlation.0 >> 32 {
            return None;
        }
        let (opcode, tag) = slot.request.as_ref()?;
        Some((*opcode, tag.as_ref()))
    }

    /// Ends the request with this correlation, if one waits.
    #[inline]
    pub fn remove(&mut self, correlation: Correlation) -> Option<(Opcode, Option<T>)> {
        let slot = self.slots.get_mut(correlation.slot())?;
        if u64::from(slot.generation) != correlation.0 >> 32 {
            return None;
        }
        let request = slot.request.take()?;
        self.free.push(correlation.slot() as u32);
        self.len -= 1;
        Some(request)
    }

    /// Ends the request with this correlation if one waits, has this operation and
    /// a tag; changes nothing otherwise.
    #[inline]
    pub fn remove_if(&mut self, correlation: Correlation, operation: Opcode) -> Option<T> {
        let slot = self.slots.get_mut(correlation.slot())?;
        match &mut slot.request {
            Some((opcode, tag))
                if *opcode == operation && u64::from(slot.generation) == correlation.0 >> 32 =>
            {
                let tag = tag.take()?;
                slot.request = None;
                self.free.push(correlation.slot() as u32);
                self.len -= 1;
                Some(tag)
            }
            _ => None,
        }
    }

    pub fn into_tags(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().filter_map(|slot| slot.request).filter_map(|(_, tag)| tag)
    }
}
