//! A file's content as shared pages: copying a whole disk costs a pointer a page.

use std::sync::Arc;

const PAGE: usize = 4096;

type Page = [u8; PAGE];

/// Bytes by page; a page never written is zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    len: usize,
    pages: Vec<Option<Arc<Page>>>,
}

impl Image {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn resize(&mut self, len: usize) {
        if len < self.len {
            let tail = len % PAGE;
            if tail > 0
                && let Some(Some(page)) = self.pages.get_mut(len / PAGE)
            {
                Arc::make_mut(page)[tail..].fill(0);
            }
        }
        self.len = len;
        self.pages.resize(len.div_ceil(PAGE), None);
    }

    /// Copies `data` over what lies at `start`, growing to hold it.
    pub(super) fn write(&mut self, start: usize, data: &[u8]) {
        if start + data.len() > self.len {
            self.resize(start + data.len());
        }
        let mut at = start;
        let mut rest = data;
        while !rest.is_empty() {
            let offset = at % PAGE;
            let (part, left) = rest.split_at(rest.len().min(PAGE - offset));
            let page = &mut self.pages[at / PAGE];
            if page.is_some() || part.iter().any(|&byte| byte != 0) {
                let page = page.get_or_insert_with(|| Arc::new([0; PAGE]));
                Arc::make_mut(page)[offset..offset + part.len()].copy_from_slice(part);
            }
            at += part.len();
            rest = left;
        }
    }

    /// The bytes from `start` to at most `end`.
    pub(super) fn read(&self, start: usize, end: usize) -> Vec<u8> {
        let end = end.min(self.len);
        let mut out = Vec::with_capacity(end.saturating_sub(start));
        let mut at = start;
        while at < end {
            let offset = at % PAGE;
            let part = (PAGE - offset).min(end - at);
            match &self.pages[at / PAGE] {
                Some(page) => out.extend_from_slice(&page[offset..offset + part]),
                None => out.resize(out.len() + part, 0),
            }
            at += part;
        }
        out
    }

    /// Copies `start..end` from another image of the same file.
    pub(super) fn copy_from(&mut self, other: &Self, start: usize, end: usize) {
        self.write(start, &other.read(start, end));
    }
}
