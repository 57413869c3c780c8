//! Keys and passwords that a process knows, and texts without them.
//!
//! A text that somebody else has made may hold a secret in pieces: cut off, broken into lines,
//! with other letter case, or with quotes and backslashes put in. So it is looked for by what cannot
//! be changed without destroying it: any eight of its letters and digits that follow each other,
//! whatever stands between them. Encodings are forms of their own, which the caller makes.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rustc_hash::FxHashSet;

/// How many letters and digits of a secret are recognised.
const PIECE: usize = 8;

/// Shorter forms are words like any other, and stay.
const MIN_FORM: usize = 4;

/// How many forms a generation has: with two of them, some thousand secrets are known.
const MAX_FORMS: usize = 20_000;

/// How many characters of a URL are searched.
const MAX_URL: usize = 2_000;

/// What stands where a secret was.
const MASK: &str = "***";

/// Bytes of the text between whose ends nothing is hidden twice: `start..end`.
type Range = (usize, usize);

/// Secrets, in all their forms. Of very many, those that were not added lately are forgotten.
///
/// ```
/// let mut secrets = dftracer_core::redact::Secrets::default();
/// secrets.add(["sk-0123456789"]);
/// assert_eq!(secrets.hide("key sk-0123456789!"), "key ***!");
/// ```
#[derive(Default)]
pub struct Secrets {
    young: Forms,
    old: Forms,
}

#[derive(Default)]
struct Forms {
    /// Eight letters and digits each, as the bytes of a number.
    pieces: FxHashSet<u64>,
    /// Forms that have no eight of them.
    short: BTreeSet<Box<str>>,
    count: usize,
}

impl Secrets {
    /// Hides these forms of a secret from now on.
    pub fn add<'a>(&mut self, forms: impl IntoIterator<Item = &'a str>) {
        for form in forms {
            if self.young.count >= MAX_FORMS {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.add(form);
        }
    }

    /// The text with `***` in the place of each secret and each piece of one, and of the names and
    /// passwords in URLs.
    pub fn hide<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut found = logins(text);
        for forms in [&self.young, &self.old] {
            if forms.count > 0 {
                forms.find(text, &mut found);
            }
        }
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        found.sort_unstable();
        let mut hidden = String::with_capacity(text.len());
        let mut done = 0;
        for (start, end) in found {
            if start > done || done == 0 {
                hidden.push_str(&text[done..start.max(done)]);
                hidden.push_str(MASK);
            }
            done = done.max(end);
        }
        hidden.push_str(&text[done..]);
        Cow::Owned(hidden)
    }
}

/// The beginning of a text, of at most so many bytes.
pub fn head(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or_default()]
}

/// The end of a text, of at most so many bytes.
pub fn tail(text: &str, limit: usize) -> &str {
    let start = text.len().saturating_sub(limit);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at));
    &text[start.unwrap_or_default()..]
}

impl Forms {
    fn add(&mut self, form: &str) {
        let mut pieces = pieces(form).peekable();
        if pieces.peek().is_some() {
            self.pieces.extend(pieces.map(|(piece, _)| piece));
        } else if form.len() >= MIN_FORM {
            self.short.insert(form.into());
        } else {
            return;
        }
        self.count += 1;
    }

    fn find(&self, text: &str, found: &mut Vec<Range>) {
        let known = pieces(text).filter(|(piece, _)| self.pieces.contains(piece));
        for (_, (start, end)) in known {
            match found.last_mut() {
                Some(last) if last.0 <= start && start <= last.1 => last.1 = last.1.max(end),
                _ => found.push((start, end)),
            }
        }
        for form in &self.short {
            found.extend(text.match_indices(&**form).map(|(at, form)| (at, at + form.len())));
        }
    }
}

/// Each eight letters and digits that follow each other, in lower case, and where they stand.
fn pieces(text: &str) -> impl Iterator<Item = (u64, Range)> + '_ {
    let mut last = 0_u64;
    let mut places = [0_usize; PIECE];
    let letters = text.bytes().enumerate().filter(|(_, byte)| byte.is_ascii_alphanumeric());
    letters.enumerate().filter_map(move |(count, (at, byte))| {
        last = last << 8 | u64::from(byte.to_ascii_lowercase());
        places[count % PIECE] = at;
        let start = places[(count + 1) % PIECE];
        (count + 1 >= PIECE).then_some((last, (start, at + 1)))
    })
}

/// Where URLs name a user and perhaps a password: between `//` and the last `@` before the path.
fn logins(text: &str) -> Vec<Range> {
    let ends = |c: char| c.is_whitespace() || "\"'<>`".contains(c);
    let mut found = Vec::new();
    for (at, _) in text.match_indices("://") {
        let start = at + 3;
        let rest = &text[start..];
        let rest = &rest[..rest.char_indices().nth(MAX_URL).map_or(rest.len(), |(at, _)| at)];
        let url = &rest[..rest.find(ends).unwrap_or(rest.len())];
        let host = &url[..url.find(['/', '?', '#']).unwrap_or(url.len())];
        let port = host.split_once(':').map(|(_, port)| port);
        // A password may hold a slash: then what is before it is no port.
        let is_cut = port.is_some_and(|port| port.bytes().any(|byte| !byte.is_ascii_digit()));
        let login = match host.rfind('@') {
            None if is_cut && !host.starts_with('[') => url.rfind('@'),
            at => at,
        };
        if let Some(end) = login {
            found.push((start, start + end));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hide(secret: &str, text: &str) -> String {
        let mut secrets = Secrets::default();
        secrets.add([secret]);
        secrets.hide(text).into_owned()
    }

    #[test]
    fn a_secret_is_hidden_when_it_is_whole_broken_or_cut() {
        let key = "sk-SECRET-0123456789abcdef";
        for (text, hidden) in [
            ("key sk-SECRET-0123456789abcdef!", "key ***!"),
            ("sk-SECRET-0123456789abcdef", "***"),
            ("twice: sk-SECRET-0123456789abcdef, SK_SECRET_0123456789ABCDEF", "twice: ***, ***"),
            ("key sk-SEC\nRET-0123", "key ***"),
            ("key sk-\\\"SECRET-0123 and more", "key *** and more"),
            ("no key: sk-SEC", "no key: sk-SEC"),
            ("", ""),
        ] {
            assert_eq!(hide(key, text), hidden);
        }
    }

    #[test]
    fn a_short_secret_is_hidden_as_a_whole_and_a_tiny_one_is_not() {
        assert_eq!(hide("pa55!", "pa55!, pa55 and xpa55!x"), "***, pa55 and x***x");
        assert_eq!(hide("abc", "abc"), "abc");
        assert_eq!(hide("", "abc"), "abc");
        assert_eq!(hide("pässé", "«pässé»"), "«***»");
    }

    #[test]
    fn a_login_is_hidden_when_a_url_has_one() {
        for (text, hidden) in [
            ("at https://me:pass@host/x?y=1 now", "at https://***@host/x?y=1 now"),
            ("https://token@host", "https://***@host"),
            ("https://me:p@ss@host/a", "https://***@host/a"),
            ("https://me:pa/ss@host/a", "https://***@host/a"),
            ("'ftp://me:pass@host', 'a@b'", "'ftp://***@host', 'a@b'"),
            (
                "http://host:8000/@scope/x http://[::1]:80/a@b",
                "http://host:8000/@scope/x http://[::1]:80/a@b",
            ),
            ("http://host/a a@b ://", "http://host/a a@b ://"),
        ] {
            assert_eq!(Secrets::default().hide(text), hidden);
        }
    }

    #[test]
    fn a_text_is_cut_between_letters() {
        assert_eq!((head("aäb", 2), head("aäb", 3), head("", 3)), ("a", "aä", ""));
        assert_eq!((tail("aäb", 2), tail("aäb", 3), tail("", 3)), ("b", "äb", ""));
    }

    #[test]
    fn what_was_added_last_is_known_when_there_were_very_many() {
        let mut secrets = Secrets::default();
        for number in 0..3 * MAX_FORMS {
            secrets.add([&*format!("secret-number-{number:08}")]);
        }
        assert_eq!(secrets.hide("secret-number-00059999"), "***");
        assert!(secrets.young.count + secrets.old.count <= 2 * MAX_FORMS);
    }

    proptest! {
        #[test]
        fn no_eight_letters_of_a_secret_stay(
            secret in "[ -~äß]{0,40}", around in "[ -~ä:/@]{0,20}", cut in 0_usize..40,
        ) {
            let part: String = secret.chars().skip(cut % 8).collect();
            let text = format!("{around}{part}{around}{secret}");
            let hidden = hide(&secret, &text);
            let known: FxHashSet<u64> = pieces(&secret).map(|(piece, _)| piece).collect();
            // A login is hidden too, which brings together what stood apart.
            prop_assume!(logins(&text).is_empty());
            for rest in hidden.split(MASK) {
                prop_assert!(pieces(rest).all(|(piece, _)| !known.contains(&piece)));
            }
        }
    }
}
