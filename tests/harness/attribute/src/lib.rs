//! The harness's `#[test]`.

use proc_macro::{TokenStream, TokenTree};

/// Registers a function, which may be `async`, as a test of the harness. `#[test(alone)]` runs beside no other.
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, function: TokenStream) -> TokenStream {
    match expand(&arguments, function) {
        Ok(expanded) => expanded,
        Err(problem) => format!("::core::compile_error!({problem:?});").parse().expect("a string literal is a token"),
    }
}

fn expand(arguments: &TokenStream, function: TokenStream) -> Result<TokenStream, &'static str> {
    let alone = match arguments.to_string().as_str() {
        "" => false,
        "alone" => true,
        _ => return Err("the one argument that #[test] takes is `alone`"),
    };
    let tokens: Vec<TokenTree> = function.clone().into_iter().collect();
    let is = |token: &TokenTree, word: &str| matches!(token, TokenTree::Ident(ident) if ident.to_string() == word);
    let at = tokens.iter().position(|token| is(token, "fn")).ok_or("#[test] is for functions")?;
    // `#[ignore]` and `#[should_panic]` would be passed over in silence, and `#[tokio::test]` would take the test away.
    let harmless = |attribute: &TokenTree| match attribute {
        TokenTree::Group(group) => {
            let name = group.stream().into_iter().next();
            name.is_some_and(|name| ["doc", "allow", "expect"].iter().any(|word| is(&name, word)))
        }
        _ => true,
    };
    if !tokens[..at].iter().all(harmless) {
        return Err("the harness's #[test] goes with #[allow] and #[expect], and with no other attribute");
    }
    let name = tokens.get(at + 1).map(ToString::to_string).unwrap_or_default();
    let call = if tokens[..at].iter().any(|token| is(token, "async")) {
        format!("|| ::harness::block_on({name}())")
    } else {
        name.clone()
    };
    let registration = format!(
        "const _: () = {{ ::harness::inventory::submit! {{ ::harness::Test {{ \
             module: ::core::module_path!(), name: {name:?}, alone: {alone}, function: {call} \
         }} }} }};"
    );
    let registration: TokenStream = registration.parse().map_err(|_| "#[test] is for functions with a name")?;
    Ok(function.into_iter().chain(registration).collect())
}
